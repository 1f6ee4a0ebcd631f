# SPDX-License-Identifier: Apache-2.0
"""What the installer asks kmod, answered for made-up modules: depmod, modinfo and modprobe.

The tests run where kmod is not installed. `test_installer_kmod.py` holds these answers against
kmod's own where it is. Few imports: every test starts this dozens of times.
"""

import os
import struct
import sys


def depmod(arguments):
    """Write modules.dep: an override decides, else the first name wins."""
    if os.path.exists(os.path.join(os.path.dirname(__file__), "depmod-fails")):
        sys.exit("depmod: cannot do it")
    folders = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-C"]
    kernel = arguments[-1]
    modules = os.path.join(after("-b", arguments), "lib/modules", kernel)
    rules = overrides(folders, kernel)
    found = {}
    for name in sorted(module_files(modules)):
        stem = os.path.basename(name).split(".ko")[0]
        if stem not in found or name.startswith(rules.get(stem, "//") + "/"):
            found[stem] = name
    with open(os.path.join(modules, "modules.dep"), "w") as file:
        file.writelines(f"{name}:\n" for name in sorted(found.values()))


def overrides(folders, kernel):
    import re

    rules = {}
    paths = [os.path.join(f, name) for f in folders if os.path.isdir(f) for name in os.listdir(f)]
    for path in sorted(paths, key=os.path.basename):
        with open(path) as file:
            for words in map(str.split, file):
                if words[:1] != ["override"]:
                    continue
                if words[2] == "*" or re.search(words[2], kernel):
                    rules[words[1]] = words[3]
    return rules


def module_files(modules):
    for folder, _, names in os.walk(modules):
        for name in names:
            if name.endswith((".ko", ".ko.xz")):
                yield os.path.relpath(os.path.join(folder, name), modules)


def modinfo(arguments):
    if "-n" not in arguments:
        print(f"filename:       {arguments[-1]}")
        for key, value in info_and_versions(arguments[-1])[0]:
            print(f"{key + ':':<15} {value}")
        return
    modules = os.path.join(after("-b", arguments), "lib/modules", after("-k", arguments))
    for name in known_modules(os.path.join(modules, "modules.dep")):
        if os.path.basename(name).split(".ko")[0] == after("-n", arguments):
            print(os.path.join(modules, name))
            return
    sys.exit(f"modinfo: ERROR: Module {after('-n', arguments)} not found.")


def known_modules(path):
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [line.split(":")[0] for line in file]


def modprobe(arguments):
    for checksum, name in info_and_versions(after("--dump-modversions", arguments))[1]:
        print(f"0x{checksum:08x}\t{name}")


def after(option, arguments):
    return arguments[arguments.index(option) + 1]


def info_and_versions(name):
    with open(name, "rb") as file:
        data = file.read()
    if name.endswith(".xz"):
        import lzma

        data = lzma.decompress(data)
    try:
        table, size, count, names = struct.unpack_from("<Q10xHHH", data, 40)
        rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * n) for n in range(count)]
        content = {}
        for row in rows:
            start = rows[names][4] + row[0]
            label = data[start : data.index(b"\0", start)].decode()
            content[label] = data[row[4] : row[4] + row[5]]
        info = [entry.decode().split("=", 1) for entry in content[".modinfo"].split(b"\0") if entry]
        versions = list(struct.iter_unpack("<Q56s", content["__versions"]))
    except (struct.error, ValueError, IndexError, KeyError):
        sys.exit(f"could not get modinfo from '{name}': Invalid argument")
    return info, [(checksum, name.rstrip(b"\0").decode()) for checksum, name in versions]


if __name__ == "__main__":
    tools = {"depmod": depmod, "modinfo": modinfo, "modprobe": modprobe}
    tools[os.path.basename(sys.argv[0])](sys.argv[1:])

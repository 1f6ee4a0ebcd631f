# SPDX-License-Identifier: Apache-2.0
"""Signing for Secure Boot: is it asked for, with which key, is the key enrolled, and doing it."""

from __future__ import annotations

import re
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from driver_patch.install.kmod import ModuleFile, find_tool, run_tool
from driver_patch.install.machine import BadInput, Failed, Machine, Refused

#: What the kernel looks for at the very end of a signed module.
SIGNATURE_MAGIC = b"~Module signature appended~\n"

_EFI = "sys/firmware/efi/efivars"
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_IMAGES = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"

# Where keys are found that DKMS (Debian, Ubuntu) and akmods (Fedora, RHEL) have made.
_KEY_PAIRS = (
    ("var/lib/dkms/mok.key", "var/lib/dkms/mok.pub"),
    ("var/lib/shim-signed/mok/MOK.priv", "var/lib/shim-signed/mok/MOK.der"),
    ("etc/pki/akmods/private/private_key.priv", "etc/pki/akmods/certs/public_key.der"),
)
_ENROLLED_LISTS = (
    f"{_EFI}/MokListRT-{_SHIM}",
    "sys/firmware/efi/mok-variables/MokListRT",
    f"{_EFI}/db-{_IMAGES}",
)


@dataclass(frozen=True)
class Signer:
    """The kernel's sign-file, the hash that it is to use, and a machine-owner key."""

    program: str
    hash: str
    key: Path
    certificate: Path

    def sign(self, module: bytes) -> bytes:
        """Return ``module`` with a signature appended.

        A passphrase of the key is read from KBUILD_SIGN_PIN, as when the kernel is built.

        Raises:
            Failed: the program failed, or what it wrote is not the module and a signature.
        """
        with tempfile.TemporaryDirectory(prefix="pyvattn-sign-") as folder:
            path = Path(folder, "nvidia-uvm.ko")
            path.write_bytes(module)
            run_tool(self.program, self.hash, str(self.key), str(self.certificate), str(path))
            signed = path.read_bytes()
        if not (signed.startswith(module) and signed.endswith(SIGNATURE_MAGIC)):
            raise Failed(f"{self.program} reported success, but appended no signature")
        return signed


def why_signed(machine: Machine) -> str:
    """Say why the kernel will load signed modules only; an empty string where it takes others."""
    if machine.text("sys/module/module/parameters/sig_enforce").strip() == "Y":
        return "the kernel enforces module signatures (module.sig_enforce)"
    if "[none]" not in (lockdown := machine.text("sys/kernel/security/lockdown")) and lockdown:
        return "the kernel is locked down"
    if _flag(machine, f"SecureBoot-{_GLOBAL}") and not _flag(machine, f"MokSBStateRT-{_SHIM}"):
        return "Secure Boot is on"
    return ""


def find_signer(
    machine: Machine,
    module: ModuleFile,
    key: Path | None = None,
    certificate: Path | None = None,
    trust_key: bool = False,
) -> Signer | None:
    """Return what will sign the module; None where no signature is asked for, or it has one.

    Raises:
        BadInput: one of key and certificate is named without the other, or does not exist.
        Refused: a signature is asked for and cannot be made, or the kernel would not trust it.
    """
    reason = why_signed(machine)
    if not (key or certificate) and (not reason or module.is_signed):
        return None
    pair = _find_key(machine, key, certificate)
    if pair is None:
        raise Refused(
            f"{reason}, so the module must be signed, and there is no machine-owner key. Make one "
            "and enrol it:\n"
            "    openssl req -new -x509 -newkey rsa:2048 -nodes -days 36500 \\\n"
            "        -subj '/CN=Module signing/' -outform DER -keyout MOK.priv -out MOK.der\n"
            "    mokutil --import MOK.der   # asks for a password; reboot, choose Enroll MOK\n"
            "  then install with --key MOK.priv --cert MOK.der (make KEY=… CERT=…)."
        )
    program = _find_program(machine)
    if program is None:
        raise Refused(
            f"the module must be signed, and there is no sign-file of kernel {machine.kernel}: "
            "install its headers (linux-headers-… or kernel-devel-…)."
        )
    if not trust_key and _is_unknown(machine, pair[1]):
        raise Refused(
            f"the key of {pair[1]} is not enrolled, so the kernel would not load the module: run "
            f"`mokutil --import {pair[1]}`, reboot, choose Enroll MOK, and repeat. If the kernel "
            "itself was built with this key, say so with --trust-key (make TRUST_KEY=1)."
        )
    return Signer(program, _hash(machine), *pair)


def _flag(machine: Machine, variable: str) -> bool:
    # Four bytes of attributes come before the value.
    return machine.data(f"{_EFI}/{variable}")[4:5] == b"\x01"


def _find_key(
    machine: Machine, key: Path | None, certificate: Path | None
) -> tuple[Path, Path] | None:
    """Return the pair that is named, or the first that DKMS or akmods has left."""
    if key or certificate:
        if not (key and certificate):
            raise BadInput("a signing key needs its certificate: give both --key and --cert.")
        for path in (key, certificate):
            if not path.is_file():
                raise BadInput(f"{path}: no such file")
        return key, certificate
    text = machine.text("etc/dkms/framework.conf")
    named = dict(re.findall(r"^\s*mok_(signing_key|certificate)=[\"']?([^\"'\s]+)", text, re.M))
    configured = [(named["signing_key"], named["certificate"])] if len(named) == 2 else []
    for names in (*configured, *_KEY_PAIRS):
        found_key, found_certificate = (machine.path(name) for name in names)
        if found_key.is_file() and found_certificate.is_file():
            return found_key, found_certificate
    return None


def _is_unknown(machine: Machine, certificate: Path) -> bool:
    """Whether neither firmware nor shim trusts the key, as far as their lists can be read."""
    try:
        der = certificate.read_bytes()
        if der.startswith(b"-----BEGIN"):
            der = ssl.PEM_cert_to_DER_cert(der.decode("ascii"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{certificate}: no certificate: {error}") from error
    lists = [data for name in _ENROLLED_LISTS if (data := machine.data(name))]
    return bool(lists) and not any(der in data for data in lists)


def _find_program(machine: Machine) -> str | None:
    """Return the path of the kernel's sign-file, or of Ubuntu's kmodsign; None without."""
    kernel = machine.kernel
    for folder in (
        f"lib/modules/{kernel}/build",
        f"lib/modules/{kernel}/source",
        f"usr/src/linux-headers-{kernel}",
        f"usr/src/kernels/{kernel}",
        f"usr/lib/linux-kbuild-{'.'.join(kernel.split('.')[:2])}",
    ):
        path = machine.path(f"{folder}/scripts/sign-file")
        if path.is_file():
            return str(path)
    return find_tool("kmodsign")


def _hash(machine: Machine) -> str:
    for name in (f"boot/config-{machine.kernel}", f"lib/modules/{machine.kernel}/build/.config"):
        found = re.search(r'^CONFIG_MODULE_SIG_HASH="(\w+)"', machine.text(name), re.M)
        if found:
            return found.group(1)
    return "sha256"

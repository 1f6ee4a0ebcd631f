"""Signing for Secure Boot: is it asked for, with which key, is the key enrolled, and doing it."""

from __future__ import annotations

import re
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from driver_patch.install.elf import SIGNATURE_MAGIC
from driver_patch.install.machine import Machine
from driver_patch.install.tools import find_tool, run_tool
from pyvattn.errors import ConfigError, InstallError

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
class KeyPair:
    """A machine-owner key: the private key, and its certificate as DER or PEM."""

    key: Path
    certificate: Path

    def der(self) -> bytes:
        """Return the certificate as DER.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            data = self.certificate.read_bytes()
            if data.startswith(b"-----BEGIN"):
                return ssl.PEM_cert_to_DER_cert(data.decode("ascii"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.certificate}: no certificate: {error}") from error
        return data


def why_signed(machine: Machine) -> str:
    """Say why the kernel will load signed modules only; an empty string where it takes others."""
    if machine.text("sys/module/module/parameters/sig_enforce").strip() == "Y":
        return "the kernel enforces module signatures (module.sig_enforce)"
    if "[none]" not in (lockdown := machine.text("sys/kernel/security/lockdown")) and lockdown:
        return "the kernel is locked down"
    if _flag(machine, f"SecureBoot-{_GLOBAL}") and not _flag(machine, f"MokSBStateRT-{_SHIM}"):
        return "Secure Boot is on"
    return ""


def _flag(machine: Machine, variable: str) -> bool:
    # Four bytes of attributes come before the value.
    return machine.data(f"{_EFI}/{variable}")[4:5] == b"\x01"


def find_key(machine: Machine, key: Path | None, certificate: Path | None) -> KeyPair | None:
    """Return the pair that is named, or the first that DKMS or akmods has left; None without.

    Raises:
        ConfigError: one of the two is named without the other, or does not exist.
    """
    if key is not None or certificate is not None:
        if key is None or certificate is None:
            raise ConfigError("a signing key needs its certificate: give both --key and --cert")
        for path in (key, certificate):
            if not path.is_file():
                raise ConfigError(f"{path}: no such file")
        return KeyPair(key, certificate)
    for names in (*_configured(machine), *_KEY_PAIRS):
        pair = KeyPair(*(machine.path(name) for name in names))
        if pair.key.is_file() and pair.certificate.is_file():
            return pair
    return None


def _configured(machine: Machine) -> list[tuple[str, str]]:
    text = machine.text("etc/dkms/framework.conf")
    values = dict(
        re.findall(r"^\s*(mok_signing_key|mok_certificate)=[\"']?([^\"'\s]+)", text, re.M)
    )
    pair = (values.get("mok_signing_key", ""), values.get("mok_certificate", ""))
    return [pair] if all(pair) else []


def is_enrolled(machine: Machine, pair: KeyPair) -> bool | None:
    """Whether the firmware or the shim trusts the key; None where their lists cannot be read."""
    lists = [data for name in _ENROLLED_LISTS if (data := machine.data(name))]
    if not lists:
        return None
    certificate = pair.der()
    return any(certificate in data for data in lists)


def find_signer(machine: Machine) -> str | None:
    """Return the path of the kernel's sign-file, or of Ubuntu's kmodsign; None without."""
    kernel = machine.kernel
    short = ".".join(kernel.split(".")[:2])
    for folder in (
        f"lib/modules/{kernel}/build",
        f"lib/modules/{kernel}/source",
        f"usr/src/linux-headers-{kernel}",
        f"usr/src/kernels/{kernel}",
        f"usr/lib/linux-kbuild-{short}",
    ):
        path = machine.path(f"{folder}/scripts/sign-file")
        if path.is_file():
            return str(path)
    return find_tool("kmodsign")


def sign(machine: Machine, signer: str, pair: KeyPair, module: bytes) -> bytes:
    """Return ``module`` with a signature appended.

    A passphrase of the key is read from KBUILD_SIGN_PIN, as when the kernel is built.

    Raises:
        InstallError: the signer failed, or what it wrote is not the module and a signature.
    """
    with tempfile.TemporaryDirectory(prefix="pyvattn-sign-") as folder:
        path = Path(folder, "nvidia-uvm.ko")
        path.write_bytes(module)
        run_tool([signer, _hash(machine), str(pair.key), str(pair.certificate), str(path)])
        signed = path.read_bytes()
    if not (signed.startswith(module) and signed.endswith(SIGNATURE_MAGIC)):
        raise InstallError(f"{signer} reported success, but appended no signature to the module")
    return signed


def _hash(machine: Machine) -> str:
    for name in (f"boot/config-{machine.kernel}", f"lib/modules/{machine.kernel}/build/.config"):
        found = re.search(r'^CONFIG_MODULE_SIG_HASH="(\w+)"', machine.text(name), re.M)
        if found:
            return found.group(1)
    return "sha256"

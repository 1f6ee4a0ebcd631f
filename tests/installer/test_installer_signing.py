"""Secure Boot: when a signature is asked for, with which key, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from scratch_machine import KERNEL, ScratchMachine

from driver_patch.install.elf import SIGNATURE_MAGIC
from driver_patch.install.install import install, uninstall
from driver_patch.install.machine import Machine
from driver_patch.install.plan import Request, plan_install
from pyvattn.errors import ConfigError, InstallError, InstallRefused

OURS = f"lib/modules/{KERNEL}/updates/pyvattn/nvidia-uvm.ko"
CERTIFICATE = b"\x30\x82certificate of the machine's owner"
SIGN = """#!/bin/sh
[ "$1" = sha512 ] && [ -r "$2" ] && [ -r "$3" ] || exit 1
printf 'signature~Module signature appended~\\n' >>"$4"
"""


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    key, certificate = tmp_path / "MOK.priv", tmp_path / "MOK.der"
    key.write_text("private")
    certificate.write_bytes(CERTIFICATE)
    return key, certificate


def _headers(scratch: ScratchMachine, script: str = SIGN) -> None:
    scratch.write(f"usr/src/linux-headers-{KERNEL}/scripts/sign-file", script).chmod(0o755)
    scratch.write(f"boot/config-{KERNEL}", 'CONFIG_MODULE_SIG_HASH="sha512"\n')


def test_without_secure_boot_nothing_is_signed(scratch, machine):
    install(machine, Request(scratch.built))
    assert not (scratch.root / OURS).read_bytes().endswith(SIGNATURE_MAGIC)


def test_without_a_key_the_way_to_one_is_explained(scratch, machine):
    scratch.secure_boot()
    before = scratch.snapshot()
    with pytest.raises(InstallRefused, match=r"Secure Boot is on[\s\S]*mokutil --import"):
        install(machine, Request(scratch.built))
    assert scratch.snapshot() == before


def test_an_enrolled_key_signs_and_uninstall_puts_all_back(scratch, machine, keys):
    scratch.secure_boot(b"another", CERTIFICATE)
    _headers(scratch)
    before = scratch.snapshot()
    install(machine, Request(scratch.built, *keys))
    signed = (scratch.root / OURS).read_bytes()
    assert signed.startswith(scratch.built.read_bytes())
    assert signed.endswith(SIGNATURE_MAGIC)
    assert install(machine, Request(scratch.built, *keys)).nothing_to_do
    uninstall(machine)
    assert scratch.snapshot() == before


def test_the_key_that_dkms_made_is_found(scratch: ScratchMachine, machine: Machine):
    scratch.secure_boot(CERTIFICATE)
    _headers(scratch)
    scratch.write("var/lib/dkms/mok.key", "private")
    scratch.write("var/lib/dkms/mok.pub", CERTIFICATE)
    install(machine, Request(scratch.built))
    assert (scratch.root / OURS).read_bytes().endswith(SIGNATURE_MAGIC)


def test_a_key_that_is_not_enrolled_is_refused_unless_it_is_trusted(scratch, machine, keys):
    scratch.secure_boot(b"another")
    _headers(scratch)
    with pytest.raises(InstallRefused, match="not enrolled"):
        install(machine, Request(scratch.built, *keys))
    install(machine, Request(scratch.built, *keys, trust_key=True))


def test_a_certificate_in_pem_is_compared_as_der(scratch, machine, keys):
    scratch.secure_boot(CERTIFICATE)
    _headers(scratch)
    body = base64.encodebytes(CERTIFICATE).decode()
    keys[1].write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    assert not plan_install(machine, Request(scratch.built, *keys)).refusals


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("sys/module/module/parameters/sig_enforce", "Y\n"),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
    ],
)
def test_kernels_that_enforce_signatures_are_seen(name, contents, scratch, machine):
    scratch.write(name, contents)
    refusals = plan_install(machine, Request(scratch.built)).refusals
    assert any("machine-owner key" in reason for reason in refusals)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("sys/module/module/parameters/sig_enforce", "N\n"),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
    ],
)
def test_kernels_that_do_not_are_seen_too(name, contents, scratch, machine):
    scratch.write(name, contents)
    assert not plan_install(machine, Request(scratch.built)).refusals


def test_secure_boot_that_the_shim_was_told_to_ignore_asks_for_nothing(scratch, machine):
    scratch.secure_boot()
    shim = "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
    scratch.write(f"sys/firmware/efi/efivars/{shim}", b"\x06\0\0\0\x01")
    assert not plan_install(machine, Request(scratch.built)).refusals


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 0\n", "#!/bin/sh\necho bad key >&2; exit 1\n"])
def test_a_signer_that_does_not_sign_leaves_nothing(script, scratch, machine, keys):
    scratch.secure_boot(CERTIFICATE)
    _headers(scratch, script)
    before = scratch.snapshot()
    with pytest.raises(InstallError, match=r"appended no signature|bad key"):
        install(machine, Request(scratch.built, *keys))
    assert scratch.snapshot() == before


def test_headers_are_asked_for_where_nothing_can_sign(scratch, machine, keys):
    scratch.secure_boot(CERTIFICATE)
    refusals = plan_install(machine, Request(scratch.built, *keys)).refusals
    assert any("sign-file" in reason for reason in refusals)


def test_a_key_without_its_certificate_is_an_error(scratch, machine, keys):
    with pytest.raises(ConfigError, match="both --key and --cert"):
        install(machine, Request(scratch.built, key=keys[0]))

# SPDX-License-Identifier: Apache-2.0
"""Secure Boot: when a signature is asked for, with which key, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from acts import install, uninstall
from scratch_machine import KERNEL, ScratchMachine

from driver_patch.install.install import Request, plan_install
from driver_patch.install.machine import BadInput, Failed, Machine, Refused
from driver_patch.install.signing import SIGNATURE_MAGIC

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
    with pytest.raises(Refused, match=r"Secure Boot is on[\s\S]*mokutil --import"):
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
    assert not plan_install(machine, Request(scratch.built, *keys)).steps
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
    with pytest.raises(Refused, match="not enrolled"):
        install(machine, Request(scratch.built, *keys))
    install(machine, Request(scratch.built, *keys, trust_key=True))


def test_a_certificate_in_pem_is_compared_as_der(scratch, machine, keys):
    scratch.secure_boot(CERTIFICATE)
    _headers(scratch)
    body = base64.encodebytes(CERTIFICATE).decode()
    keys[1].write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    assert any(
        "sign" in step for step in plan_install(machine, Request(scratch.built, *keys)).steps
    )


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("sys/module/module/parameters/sig_enforce", "Y\n"),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
    ],
)
def test_kernels_that_enforce_signatures_are_seen(name, contents, scratch, machine):
    scratch.write(name, contents)
    with pytest.raises(Refused, match="machine-owner key"):
        plan_install(machine, Request(scratch.built))


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("sys/module/module/parameters/sig_enforce", "N\n"),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
    ],
)
def test_kernels_that_do_not_are_seen_too(name, contents, scratch, machine):
    scratch.write(name, contents)
    assert plan_install(machine, Request(scratch.built)).steps


def test_secure_boot_that_the_shim_was_told_to_ignore_asks_for_nothing(scratch, machine):
    scratch.secure_boot()
    shim = "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
    scratch.write(f"sys/firmware/efi/efivars/{shim}", b"\x06\0\0\0\x01")
    assert plan_install(machine, Request(scratch.built)).steps


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 0\n", "#!/bin/sh\necho bad key >&2; exit 1\n"])
def test_a_signer_that_does_not_sign_leaves_nothing(script, scratch, machine, keys):
    scratch.secure_boot(CERTIFICATE)
    _headers(scratch, script)
    before = scratch.snapshot()
    with pytest.raises(Failed, match=r"appended no signature|bad key"):
        install(machine, Request(scratch.built, *keys))
    assert scratch.snapshot() == before


def test_headers_are_asked_for_where_nothing_can_sign(scratch, machine, keys):
    scratch.secure_boot(CERTIFICATE)
    with pytest.raises(Refused, match="sign-file"):
        plan_install(machine, Request(scratch.built, *keys))


def test_a_key_without_its_certificate_is_an_error(scratch, machine, keys):
    with pytest.raises(BadInput, match="both --key and --cert"):
        install(machine, Request(scratch.built, key=keys[0]))

"""Licences as packages state them, digests as the locks have them."""

from email.message import Message

import pytest

from pipeline.provenance import packages
from pipeline.provenance.packages import Licence


def metadata(lines):
    about = Message()
    for name, value in lines:
        about[name] = value
    return about


CLASSIFIER = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ([("License-Expression", "MIT OR Apache-2.0"), ("License", "x")], Licence("MIT OR Apache-2.0", True)),
        ([("License", "Apache 2.0 License")], Licence("Apache-2.0", True)),
        ([("License", "MIT License\n\nCopyright …")], Licence("MIT", True)),
        ([("Classifier", CLASSIFIER + "ISC License (ISCL)"), ("License", "UNKNOWN")], Licence("ISC", True)),
        ([("Classifier", CLASSIFIER + "BSD License")], Licence("BSD License", False)),  # which of them it does not say
        ([("License", "BSD"), ("Classifier", CLASSIFIER + "BSD License")], Licence("BSD License", False)),
        (
            [("Classifier", CLASSIFIER + "BSD License"), ("Classifier", CLASSIFIER + "Apache Software License")],
            Licence("Apache Software License, BSD License", False),
        ),
        ([("License", "My own terms")], Licence("My own terms", False)),
        ([], Licence("not stated", False)),
    ],
)
def test_a_licence_is_what_the_package_says_and_no_more(lines, licence):
    assert packages.licence_in(metadata(lines)) == licence


def test_a_lock_gives_every_digest_of_every_version(tmp_path):
    (tmp_path / "cpu.txt").write_text(
        f"# a comment\nOne.Two==1.0 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\n"
        f'torch==2+cpu ; platform_machine == "x86_64" \\\n    --hash=sha256:{"c" * 64}\n'
    )
    (tmp_path / "cuda.txt").write_text(f"one-two==1.0 \\\n    --hash=sha256:{'d' * 64}\n")
    assert packages.locked(tmp_path) == {
        ("one-two", "1.0"): ("a" * 64, "b" * 64, "d" * 64),
        ("torch", "2+cpu"): ("c" * 64,),
    }


def test_an_installed_version_that_no_lock_has_gets_no_digest(tmp_path):
    (tmp_path / "cpu.txt").write_text(f"numpy==0.0.1 \\\n    --hash=sha256:{'a' * 64}\n")
    assert [(one.name, one.digests) for one in packages.installed(tmp_path)] == [("numpy", ())]

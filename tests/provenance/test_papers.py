"""The statement speaks of the promoted files; whatever is changed afterwards is found."""

import json
from dataclasses import replace

import pytest

from pipeline import files
from pipeline.errors import ValidationError
from pipeline.integration import store
from pipeline.provenance import papers, statement
from tests.provenance import made

NAME = "custom-dnd-tiny"


def read(models, suffix):
    return json.loads((models / f"{NAME}{suffix}").read_text())


def test_every_promoted_file_is_a_subject_with_its_digest(tmp_path):
    models = made.promoted(tmp_path, projector="eye")
    subjects = {one["name"]: one["digest"]["sha256"] for one in read(models, ".provenance.json")["subject"]}
    there = {path.name for path in models.iterdir() if path.is_file()} - {f"{NAME}.provenance.json"}
    assert set(subjects) == there == {f"{NAME}.gguf", f"{NAME}-mmproj.gguf", f"{NAME}.cdx.json", store.METADATA}
    assert subjects == {name: files.sha256_file(models / name) for name in there}
    assert papers.check(models) == subjects


def test_the_statement_has_the_fields_that_the_specifications_require(tmp_path):
    said = read(made.promoted(tmp_path), ".provenance.json")
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    build, details = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert build["buildType"] and build["externalParameters"] and details["builder"]["id"]
    for one in build["resolvedDependencies"]:
        assert one["digest"], one["name"]
    assert {one["name"] for one in build["resolvedDependencies"]} == {
        "base", "dataset.jsonl", "training_data", "dm-forge", "llama.cpp",
    }  # fmt: skip


def test_the_weights_on_the_way_are_byproducts(tmp_path):
    made_on_the_way = read(made.promoted(tmp_path), ".provenance.json")["predicate"]["runDetails"]["byproducts"]
    assert {one["name"]: one["digest"]["sha256"] for one in made_on_the_way} == {
        "training/adapter/adapter_model.safetensors": "a" * 64,
        "export/model-f16.gguf": "f" * 64,
    }


def test_no_paper_names_a_place_of_this_machine_or_a_time(tmp_path):
    models = made.promoted(tmp_path)
    for suffix in store.PAPERS.values():
        text = (models / f"{NAME}{suffix}").read_text()
        assert "/home" not in text and str(tmp_path) not in text and "timestamp" not in text
    assert read(models, ".provenance.json")["predicate"]["buildDefinition"]["externalParameters"]["base"] == "tiny"


def test_promoting_the_same_run_elsewhere_gives_the_same_papers(tmp_path):
    one, two = made.promoted(tmp_path / "one"), made.promoted(tmp_path / "two")
    for suffix in store.PAPERS.values():
        assert (one / f"{NAME}{suffix}").read_bytes() == (two / f"{NAME}{suffix}").read_bytes()


@pytest.mark.parametrize("name", [f"{NAME}.gguf", f"{NAME}-mmproj.gguf", f"{NAME}.cdx.json", store.METADATA])
def test_a_changed_file_is_named(tmp_path, name):
    models = made.promoted(tmp_path, projector="eye")
    content = (models / name).read_bytes()
    (models / name).unlink()  # it shares its bytes with the run's file
    (models / name).write_bytes(content.replace(b"e", b"x", 1) if name.endswith(".gguf") else content + b" ")
    with pytest.raises(ValidationError, match=name):
        papers.check(models)


def test_a_missing_file_is_named(tmp_path):
    models = made.promoted(tmp_path)
    (models / f"{NAME}.cdx.json").unlink()
    with pytest.raises(ValidationError, match=r"cdx\.json: its sha256 is missing"):
        papers.check(models)


def forge(models, change):
    said = read(models, ".provenance.json")
    change(said)
    (models / f"{NAME}.provenance.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said["subject"].pop(0), "nothing of it"),
        (lambda said: said["subject"][0]["digest"].update(sha256="0" * 64), "the provenance statement says 0000"),
        (lambda said: said.update(predicateType="https://slsa.dev/provenance/v0.2"), "not SLSA provenance v1"),
        (lambda said: said["predicate"]["runDetails"]["metadata"].update(invocationId="other"), "is of run other"),
    ],
)
def test_a_forged_statement_is_refused(tmp_path, change, words):
    models = made.promoted(tmp_path)
    forge(models, change)
    with pytest.raises(ValidationError, match=words):
        papers.check(models)


def test_a_bill_of_another_model_is_refused_though_the_statement_names_it(tmp_path):
    models = made.promoted(tmp_path)
    bill = models / f"{NAME}.cdx.json"
    bill.write_text(bill.read_text().replace(files.sha256_bytes(b"weights"), "0" * 64))
    digest = files.sha256_file(bill)
    forge(models, lambda said: [one["digest"].update(sha256=digest) for one in said["subject"] if "cdx" in one["name"]])
    with pytest.raises(ValidationError, match="it is the bill of 0000"):
        papers.check(models)


def test_unreadable_and_absent_papers_are_explained(tmp_path):
    models = made.promoted(tmp_path)
    (models / f"{NAME}.provenance.json").write_text("{")
    with pytest.raises(ValidationError, match="cannot be read"):
        papers.check(models)
    with pytest.raises(ValidationError, match="no model has been promoted"):
        papers.check(tmp_path / "nowhere")


def test_the_papers_go_back_with_their_model(tmp_path):
    models = made.promoted(tmp_path, "one")
    made.promoted(tmp_path, "two")
    store.rollback(models)
    assert (models / f"{NAME}.gguf").read_text() == "one"
    papers.check(models)


def test_a_hub_base_and_a_relative_data_folder_keep_their_names():
    config = {"base": "gemma-3-1b", "data": {"folder": "training_data"}, "output_dir": "x"}
    hub = replace(made.BASE, origin="owner/name@commit")
    assert statement.settings(config, hub) == {"base": "gemma-3-1b", "data": {"folder": "training_data"}}

"""Bases from the hub: fetched whole, resumed, verified, pinned, and every refusal explained before the weights."""

import json
import socket

import pytest

from pipeline import files
from pipeline.bases import fetch, hub
from pipeline.errors import BaseModelError, MachineError
from tests.bases import small
from tests.bases.hub import COMMIT

WEIGHTS = "model.safetensors"


def get(tmp_path, stage, name="tiny/base", **more):
    return fetch.ensure(name, tmp_path / "cache", stage, **more)


def refusal(tmp_path, stage, name="tiny/base", kind=BaseModelError, **more):
    with pytest.raises(kind) as caught:
        get(tmp_path, stage, name, **more)
    return caught.value


def test_a_base_is_fetched_whole_with_a_bar_and_named_by_its_commit(on_hub, tmp_path, quiet, told):
    base = get(tmp_path, quiet)
    assert {path.name for path in base.path.iterdir()} == {*on_hub.files, "base.json"}
    assert all((base.path / name).read_bytes() == content for name, content in on_hub.files.items())
    assert (base.name, base.origin, base.architecture) == ("base", f"tiny/base@{COMMIT}", "llama")
    assert base.licence == "apache-2.0"
    assert told.updates[-1][0] == told.updates[-1][1] > 0


def test_the_branch_head_is_pinned_on_first_use_and_kept(on_hub, tmp_path, quiet, told):
    first = get(tmp_path, quiet)
    assert any(COMMIT in note and "pinned" in note for note in told.notes)
    on_hub.commit = "f" * 40
    on_hub.files["config.json"] = b"{}"
    on_hub.requests.clear()
    assert get(tmp_path, quiet) == first
    assert on_hub.requests == []


def test_a_commit_can_be_asked_for_and_an_unknown_one_is_said(on_hub, tmp_path, quiet):
    assert COMMIT in get(tmp_path, quiet, f"tiny/base@{COMMIT}").origin
    assert "no commit " + "a" * 40 in refusal(tmp_path, quiet, "tiny/base@" + "a" * 40).what


def test_an_interrupted_download_goes_on_where_it_stopped(on_hub, tmp_path, quiet, told):
    on_hub.cut[WEIGHTS] = 30_000
    on_hub.breaks_after.add(WEIGHTS)
    error = refusal(tmp_path, quiet, kind=MachineError)
    assert "goes on where it stopped" in error.fix
    part = next((tmp_path / "cache").rglob(f"{WEIGHTS}.part"))
    assert part.stat().st_size == 30_000
    on_hub.cut.clear()
    on_hub.broken.clear()
    on_hub.requests.clear()
    base = get(tmp_path, quiet)
    assert on_hub.asked_for(WEIGHTS) == ["bytes=30000-"]
    assert (base.path / WEIGHTS).read_bytes() == on_hub.files[WEIGHTS]
    assert any("cut off" in note for note in told.notes)


def test_a_shaky_line_is_ridden_out_in_one_run(on_hub, tmp_path, quiet):
    on_hub.cut[WEIGHTS] = 30_000
    base = get(tmp_path, quiet)
    assert (base.path / WEIGHTS).read_bytes() == on_hub.files[WEIGHTS]
    assert on_hub.asked_for(WEIGHTS)[:3] == [None, "bytes=30000-", "bytes=60000-"]


def test_a_half_download_with_wrong_bytes_is_fetched_from_the_start(on_hub, tmp_path, quiet):
    work = tmp_path / "cache" / "bases" / f".tiny--base-{COMMIT[:12]}.download"
    small.write(work, {f"{WEIGHTS}.part": b"\0" * 999})
    base = get(tmp_path, quiet)
    assert (base.path / WEIGHTS).read_bytes() == on_hub.files[WEIGHTS]
    assert on_hub.asked_for(WEIGHTS) == ["bytes=999-", None]


def test_bytes_that_are_not_the_published_ones_are_refused_and_not_kept(on_hub, tmp_path, quiet):
    on_hub.published[WEIGHTS] = "ab" * 32
    error = refusal(tmp_path, quiet)
    assert "another digest" in error.what
    assert "ab" * 32 in error.what
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not list((tmp_path / "cache").rglob("base.json"))


def test_a_page_larger_than_the_file_is_asked_for_so_often_and_then_explained(on_hub, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(hub, "_ATTEMPTS", 2)
    on_hub.pages["config.json"] = b"<html>blocked</html>" * 100
    error = refusal(tmp_path, quiet, kind=MachineError)
    size = len(on_hub.files["config.json"])
    assert "config.json has 2,000 bytes" in error.what and f"announces {size:,}" in error.what
    assert "HTTPS_PROXY" in error.fix
    assert on_hub.asked_for("config.json") == [None, None]
    assert not list((tmp_path / "cache").rglob("*.part"))
    on_hub.pages.clear()
    assert get(tmp_path, quiet).path.is_dir()


@pytest.mark.parametrize(("token", "status", "said"), [(None, 401, "no token"), ("hf_other", 403, "no access")])
def test_a_gated_base_says_how_to_accept_and_which_variable_holds_the_token(
    on_hub, tmp_path, quiet, monkeypatch, token, status, said
):
    on_hub.gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(tmp_path, quiet)
    assert f"HTTP {status}" in error.what
    assert said in error.what
    assert "HF_TOKEN" in error.fix
    assert "smollm2-135m" in error.fix
    assert on_hub.asked_for(WEIGHTS) == []


def test_a_member_gets_a_gated_base(on_hub, tmp_path, quiet, monkeypatch):
    on_hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert get(tmp_path, quiet).path.is_dir()


@pytest.mark.parametrize("token", [None, "hf_member"])
def test_an_unknown_repository_is_said(on_hub, tmp_path, quiet, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(tmp_path, quiet, "nobody/nothing")
    assert "no repository 'nobody/nothing'" in error.what
    assert "smollm2-135m" in error.fix


def test_without_a_network_the_cache_serves_and_else_alternatives_are_named(on_hub, tmp_path, quiet, monkeypatch):
    base = get(tmp_path, quiet)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert get(tmp_path, quiet) == base
        error = refusal(tmp_path, quiet, "tiny/other", kind=MachineError)
    assert "does not answer" in error.what
    assert "smollm2-135m" in error.fix


def test_offline_mode_is_named(on_hub, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(tmp_path, quiet, kind=MachineError).what


def test_pickled_weights_are_refused_before_anything_is_fetched(on_hub, tmp_path, quiet):
    on_hub.files["pytorch_model.bin"] = on_hub.files.pop(WEIGHTS)
    error = refusal(tmp_path, quiet)
    assert "pytorch_model.bin" in error.what
    assert [path for _, path, _ in on_hub.requests if "/resolve/" in path] == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_before_the_weights(on_hub, tmp_path, quiet, name):
    content = json.loads(on_hub.files[name]) | {"auto_map": {"AutoModel": "evil.Model"}}
    on_hub.files[name] = json.dumps(content).encode()
    assert "auto_map" in refusal(tmp_path, quiet).what
    assert on_hub.asked_for(WEIGHTS) == []


def test_an_architecture_without_a_way_to_gguf_is_refused_before_the_weights(on_hub, tmp_path, quiet):
    on_hub.files["config.json"] = json.dumps({**small.CONFIG, "architectures": ["BertModel"]}).encode()
    error = refusal(tmp_path, quiet)
    assert "BertModel" in error.what
    assert "LlamaForCausalLM" in error.fix
    assert on_hub.asked_for(WEIGHTS) == []


def test_a_sharded_base_is_fetched_and_a_missing_shard_named(on_hub, tmp_path, quiet):
    on_hub.files = small.sharded() | {"consolidated.safetensors": b"left alone", "training_args.bin": b"too"}
    base = get(tmp_path, quiet)
    assert not (base.path / "consolidated.safetensors").exists()
    files.remove(base.path)
    del on_hub.files["model-00002-of-00002.safetensors"]
    assert "model-00002-of-00002" in refusal(tmp_path, quiet).what


def test_a_pretrained_gemma_is_given_the_gemma_template(on_hub, tmp_path, quiet, told):
    del on_hub.files["chat_template.jinja"]
    config = {**small.CONFIG, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    tokenizer = {**small.TOKENIZER, "added_tokens": [{"id": 6, "content": "<end_of_turn>", "special": True}]}
    on_hub.files |= {"config.json": json.dumps(config).encode(), "tokenizer.json": json.dumps(tokenizer).encode()}
    base = get(tmp_path, quiet)
    assert "<start_of_turn>" in (base.path / "chat_template.jinja").read_text()
    assert files.read_json(base.path / "tokenizer_config.json")["eos_token"] == "<end_of_turn>"
    assert get(tmp_path, quiet) == base


def test_an_open_copy_of_a_gemma_wants_the_licence_flag(on_hub, tmp_path, quiet):
    on_hub.licence = "gemma"
    assert "--accept-licence gemma" in refusal(tmp_path, quiet).fix
    assert get(tmp_path, quiet, accepted=["gemma"]).licence == "gemma"


def test_a_damaged_file_in_the_cache_is_noticed_and_fetched_again(on_hub, tmp_path, quiet, told):
    base = get(tmp_path, quiet)
    (base.path / WEIGHTS).write_bytes(b"rot")
    assert get(tmp_path, quiet) == base
    assert any("damaged" in note and WEIGHTS in note for note in told.notes)


def test_the_probe_says_whether_the_hub_answers_and_the_licence_is_accepted(on_hub, monkeypatch):
    assert hub.probe("tiny/base", COMMIT).accepted
    on_hub.gated = True
    closed = hub.probe("tiny/base", COMMIT)
    assert (closed.answers, closed.accepted) == (True, False)
    assert "gated" in closed.reason
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    silent = hub.probe("tiny/base", COMMIT)
    assert (silent.answers, silent.accepted) == (False, False)
    assert "does not answer" in silent.reason

"""A promoted model made of a few bytes, with real papers."""

from pathlib import Path

from pipeline import files
from pipeline.artifacts import BaseModel, Run
from pipeline.config import Config
from pipeline.integration import store
from pipeline.provenance import papers

BASE = BaseModel("tiny", Path("tiny"), "b" * 64, "llama", "Apache-2.0", origin="local folder")
FACTS = {
    "config": Config(base="/home/me/tiny", data={"folder": "/home/me/data"}).model_dump(mode="json"),
    "inputs": {"data": "1" * 64},
    "code": "c" * 64,
    "llama_cpp": {"commit": "0" * 40, "build_flags": ["-DGGML_NATIVE=ON"]},
    "versions": {"torch": "2"},
    "host": {"machine": "x86_64", "threads": 1},
}


def run(folder, content="weights"):
    made = Run(folder / "runs" / "tiny-0123456789")
    files.write_text(made.export / "model-Q8_0.gguf", content)
    outputs = {
        "data": {"data/dataset.jsonl": "d" * 64},
        "training": {"training/adapter/adapter_model.safetensors": "a" * 64, "training/metrics.jsonl": "e" * 64},
        "export": {"export/model-f16.gguf": "f" * 64},
    }
    stages = {name: {"outputs": digests} for name, digests in outputs.items()}
    made.write_manifest({"run_id": made.run_id, "stages": stages})
    return made


def metadata(made):
    return {
        "model_name": "custom-dnd-tiny",
        "run_id": made.run_id,
        "sha256": files.sha256_file(made.export / "model-Q8_0.gguf"),
        "quantization_level": "Q8_0",
        "tool_call_accuracy": 0.5,
        "baseline_tool_call_accuracy": 0.25,
    }


def promoted(folder, content="weights", projector=None):
    """Promote; returns the shelf's folder."""
    made, mmproj = run(folder, content), None
    if projector:
        mmproj = folder / "eye.gguf"
        mmproj.write_text(projector)
    about = metadata(made)
    written = papers.write(made, BASE, FACTS, about, mmproj)
    store.promote(made.export / "model-Q8_0.gguf", mmproj, about, folder / "models", "tiny", written)
    return folder / "models"

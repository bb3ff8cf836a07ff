from pipeline.validation.runtime.llama_node import check, lines

__all__ = ["check", "lines"]

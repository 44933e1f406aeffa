"""Convert a model folder to GGUF: `python -m core.workers.export.convert TOOLS ARGUMENT ...`, with
the arguments of llama.cpp's convert_hf_to_gguf.py.

TOOLS has the converter and a package `gguf`, which this process alone sees.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRE_TOKENIZERS: Mapping[tuple[str, bool], str] = {("ByteLevel", True): "gpt-2"}
"""(type of a pre-tokenizer, whether it splits by the pattern of GPT-2) -> its name in llama.cpp."""


def main(tools: str, arguments: list[str]) -> None:
    """Run the converter, which exits with a traceback if it cannot."""
    sys.path.insert(0, tools)
    import convert_hf_to_gguf
    from conversion.base import TextModel

    _name_plain_pre_tokenizers(TextModel)
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    convert_hf_to_gguf.main()


def _name_plain_pre_tokenizers(text_model: Any) -> None:
    """Let the converter accept a tokenizer that it does not know by its hash, if its
    tokenizer.json says plainly how it splits text."""
    original = text_model.get_vocab_base_pre

    def name_of(self: Any, tokenizer: Any) -> str:
        try:
            return str(original(self, tokenizer))
        except NotImplementedError:
            path = Path(self.dir_model) / "tokenizer.json"
            kind = json.loads(path.read_text(encoding="utf-8")).get("pre_tokenizer") or {}
            name = PRE_TOKENIZERS.get((str(kind.get("type")), bool(kind.get("use_regex"))))
            if name is None:
                raise
            return name

    text_model.get_vocab_base_pre = name_of


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

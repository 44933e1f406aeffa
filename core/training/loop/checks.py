"""Answers of a model to the tests of a suite: greedy, many at once. Judges none of them.

Answers are written in batches of similar lengths, padded on the left, with a cache of keys and
values. Choices are compared by the likelihood of each, in one forward pass.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..contract.checks.suite import Suite, SuiteTest
from ..contract.failures import Stopped, TrainingError
from ..contract.row_reader import BadRow
from ..data.prompts import prompt_ids

OnProgress = Callable[[int, int], None]
"""Called with (tests answered, tests of the suite)."""


def ignore_progress(_done: int, _total: int) -> None:
    """Do nothing with the progress."""


def never() -> bool:
    """Return False: nobody asks the answers to stop."""
    return False


@dataclass
class Examinee:
    """Model that answers suites, with its tokenizer."""

    model: Any
    tokenizer: Any
    batch_size: int
    """Tests at once; halved for good when the memory is too small for them."""
    on_progress: OnProgress = ignore_progress
    is_stopped: Callable[[], bool] = never
    """Asked before each batch."""
    max_tokens: int | None = None
    """Tokens of a batch at most, padding and answers included, unless one test has more."""

    def answers(self, suite: Suite) -> tuple[str, ...]:
        """Return the answer to each test; of one with choices, the most likely choice.

        Training mode, gradients and random numbers stay as they are. Raises TrainingError for a
        test that the model cannot read, and Stopped.
        """
        prompts = [self._prompt(suite, test) for test in suite.tests]
        written = [index for index, test in enumerate(suite.tests) if not test.choice]
        chosen = [index for index, test in enumerate(suite.tests) if test.choice]
        found: dict[int, str] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng(), torch.no_grad():
                for indices, answer in ((written, self._write), (chosen, self._choose)):
                    indices.sort(key=lambda index: len(prompts[index]), reverse=True)
                    sizes = [
                        len(prompts[index]) + suite.tests[index].max_new_tokens for index in indices
                    ]
                    for batch in self._batches(indices, sizes):
                        tests = [suite.tests[index] for index in batch]
                        texts = answer([prompts[index] for index in batch], tests)
                        found.update(zip(batch, texts, strict=True))
                        self.on_progress(len(found), len(suite.tests))
        finally:
            self.model.train(was_training)
        return tuple(found[index] for index in range(len(suite.tests)))

    def _batches(self, indices: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the indices of tests in batches, by the tokens of each. Raises Stopped."""
        start = 0
        while start < len(indices):
            if self.is_stopped():
                raise Stopped
            end = start + 1
            while end < min(len(indices), start + self.batch_size):
                num_rows = end + 1 - start
                if self.max_tokens and num_rows * max(sizes[start : end + 1]) > self.max_tokens:
                    break
                end += 1
            yield indices[start:end]
            start = end

    def _write(self, prompts: list[list[int]], tests: list[SuiteTest]) -> list[str]:
        """Return greedy answers to prompts."""
        try:
            return self._generate(prompts, tests)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        self._halve_batch(len(prompts))
        middle = len(prompts) // 2
        first = self._write(prompts[:middle], tests[:middle])
        return first + self._write(prompts[middle:], tests[middle:])

    def _generate(self, prompts: list[list[int]], tests: list[SuiteTest]) -> list[str]:
        ids_BT, mask_BT = self._padded(prompts)
        settings = GenerationConfig(
            max_new_tokens=max(test.max_new_tokens for test in tests),
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id,
        )
        output_BT = self.model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings
        )
        new_BT = output_BT[:, ids_BT.shape[1] :]
        texts = []
        for row, test in zip(new_BT, tests, strict=True):
            text = self.tokenizer.decode(row[: test.max_new_tokens], skip_special_tokens=True)
            texts.append(str(text).strip())
        return texts

    def _choose(self, prompts: list[list[int]], tests: list[SuiteTest]) -> list[str]:
        """Return the most likely choice of each test, by the sum of the log-probabilities of its
        tokens."""
        pairs = []
        for prompt, test in zip(prompts, tests, strict=True):
            pairs += [(prompt, self._continuation(choice)) for choice in test.choice]
        likelihoods: list[float] = []
        while len(likelihoods) < len(pairs):
            start = len(likelihoods)
            try:
                likelihoods += self._log_likelihoods(pairs[start : start + self.batch_size])
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self._halve_batch(self.batch_size)
        scores = iter(likelihoods)
        best = []
        for test in tests:
            own = [next(scores) for _choice in test.choice]
            best.append(test.choice[own.index(max(own))].strip())
        return best

    def _log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Return the log-likelihood of each continuation behind its prompt."""
        ids_BT, mask_BT = self._padded([prompt + after for prompt, after in pairs])
        longest = max(len(after) for _prompt, after in pairs)
        logits_BTV = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits
        sums = []
        for row, (_prompt, after) in enumerate(pairs):
            logits_TV = logits_BTV[row, -len(after) - 1 : -1].float()
            targets_T = torch.tensor(after, device=logits_TV.device)
            chosen_T = logits_TV.log_softmax(dim=-1).gather(1, targets_T[:, None])
            sums.append(float(chosen_T.sum()))
        return sums

    def _halve_batch(self, num_rows: int) -> None:
        self.batch_size = max(1, num_rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (tokens, mask) of rows that are padded on the left."""
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _prompt(self, suite: Suite, test: SuiteTest) -> list[int]:
        """Return the tokens of a prompt. Raises TrainingError."""
        row: dict[str, Any] = {"prompt": list(test.messages)}
        if test.tools:
            row["tools"] = json.dumps(list(test.tools))
        if not self.tokenizer.chat_template:  # a base model continues a plain text
            contents = (str(message.get("content") or "") for message in test.messages)
            row = {"prompt": "\n\n".join(contents)}
        place = f"suite {suite.name}, line {test.line}"
        try:
            ids = prompt_ids(row, self.tokenizer)
        except BadRow as error:
            raise TrainingError(f"{place}: {error}.", cause="bad_row") from None
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and len(ids) + test.max_new_tokens > limit:
            raise TrainingError(
                f"{place}: its prompt has {len(ids):,} tokens, and the model takes {limit:,} with "
                "the answer: shorten it.",
                cause="bad_row",
            )
        return ids

    def _continuation(self, choice: str) -> list[int]:
        """Return the tokens of a choice behind a prompt."""
        text = choice.strip() if self.tokenizer.chat_template else f" {choice.strip()}"
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

"""Answers all prompts with all variants: batch by batch, with everything below the changed layer computed once.

For each base (START, and every END) the model holds its tensors. For each batch the prompts are read once
(`prefix.py`). For each unit and factor the unit is overwritten (`edits.py`), the prompts are read from there on, and
the replies are decoded and graded. Batches are those of `eval.run`. So a reply is the one that `eval.run` gives for the
written checkpoint, and in the first batch of every base this is checked for every unit (`whole_pass`).

A unit that END left as it is in START has the replies of its base, without computing them again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from analyze.transplant.edits import LiveModel
from analyze.transplant.pieces import WHOLE_PASS, Piece, record_key
from analyze.transplant.plan import START, Unit, Variant
from analyze.transplant.prefix import Prefix
from eval.replies.answering import reply_record
from eval.replies.batching import BatchSize
from eval.replies.conditions import Query
from eval.replies.decoding import decode
from eval.replies.engines import EngineOptions, HuggingFace, Request
from eval.replies.generation import Generation, as_text
from models.checkpoint import Checkpoint
from tracking.progress import Progress
from tracking.records import Record
from tracking.sharding import SharedLog

if TYPE_CHECKING:
    from eval.replies.generation import Processor
    from eval.replies.pictures import AnswerSpaces
    from eval.replies.subject import Subject

KEPT = (
    "task", "id", "ability", "condition", "sample", "cluster", "gold", "response", "num_tokens", "finish_reason",
    "extracted", "status", "well_formed",
)  # fmt: skip
"""What a record keeps of `eval.run`'s."""


class Transplants:
    """A loaded model, its donors, and how prompts are put to it."""

    def __init__(
        self,
        subject: "Subject",
        processor: "Processor",
        options: EngineOptions,
        donors: Mapping[str, Checkpoint],
        texts: Mapping[str, str],
        spaces: "AnswerSpaces",
    ) -> None:
        """Loads START.

        Args:
            donors: `start` and the labels of the ENDs -> checkpoints.
            texts: key of a query -> rendered prompt.
        """
        self.engine = HuggingFace(subject, processor, options)
        self.live = LiveModel(self.engine.model, donors)
        self._processor, self._options, self._texts, self._spaces = processor, options, texts, spaces
        self._changed: dict[tuple[str, str], bool] = {}
        self._logged: set[str] = set()

    def answer(self, pieces: Sequence[Piece], log: SharedLog, batch_size: int, *, title: str) -> None:
        """Answers and records all pieces."""
        with Progress(label=title, total=len(pieces), unit="unit") as shown:
            for base, of_base in groupby(pieces, key=lambda piece: piece.base):
                self.live.become(base)
                for _, of_batch in groupby(of_base, key=lambda piece: piece.batch):
                    own = list(of_batch)
                    self._answer_pieces(own, log, batch_size)
                    shown.advance(len(own))
        self.live.become(START)

    def _answer_pieces(self, pieces: Sequence[Piece], log: SharedLog, batch_size: int) -> None:
        """Answers a batch with all its units; it is halved if memory runs out."""

        def work(queries: Sequence[Query]) -> Sequence[Query]:
            self._answer_batch(queries, pieces, log)
            return queries

        for _ in BatchSize(batch_size).run(pieces[0].queries, work):
            pass

    def _answer_batch(self, queries: Sequence[Query], pieces: Sequence[Piece], log: SharedLog) -> None:
        """Reads a batch's prompts once and answers them with every variant; what is logged already is left out."""
        todo = [replace(piece, queries=tuple(queries)) for piece in pieces]
        todo = [piece for piece in todo if not self._logged.issuperset(piece.keys)]
        if not todo:
            return
        requests = [Request(self._texts[query.key], query.pictures) for query in queries]
        inputs, rows = self.engine.encode(requests)
        prefix = Prefix(self.engine.model, inputs, rows)
        unchanged: list[Generation] | None = None
        for piece in todo:
            records: list[Record] = []
            for variant in piece.variants:
                if self._is_changed(variant):
                    with self.live.edited(variant):
                        replies = self._decode(prefix, variant.unit)
                        whole = self._whole_pass(piece, variant, requests)
                else:
                    unchanged = unchanged or self._decode(prefix, None)
                    replies = unchanged
                    whole = self._whole_pass(piece, variant, requests) if variant.unit is None else None
                records += self._records(variant, queries, replies, whole)
            log.append(*records)
            self._logged.update(record["key"] for record in records)

    def _decode(self, prefix: Prefix, unit: Unit | None) -> list[Generation]:
        with torch.inference_mode():
            replies = decode(
                self.engine.model,
                prefix.rows(unit),
                self._options.settings,
                repetition_window=self._options.repetition_window,
            )
        return [as_text(self._processor, reply) for reply in replies]

    def _whole_pass(self, piece: Piece, variant: Variant, requests: Sequence[Request]) -> "list[Generation] | None":
        """Returns the replies of `eval.run`'s own engine, in the first batch and for a unit's last factor."""
        return self.engine.answer(requests) if piece.batch == 0 and variant == piece.variants[-1] else None

    def _is_changed(self, variant: Variant) -> bool:
        if variant.unit is None or variant.end is None:
            return False
        place = variant.unit.name, variant.end
        if place not in self._changed:
            self._changed[place] = self.live.is_changed(variant.unit, variant.end)
        return self._changed[place]

    def _records(
        self,
        variant: Variant,
        queries: Sequence[Query],
        replies: Sequence[Generation],
        whole: Sequence[Generation] | None,
    ) -> Iterator[Record]:
        for number, (query, reply) in enumerate(zip(queries, replies, strict=True)):
            record = reply_record(query, self._texts[query.key], reply, self._spaces(query.prompt, query.directory))
            yield {
                "key": record_key(variant, query),
                "end": variant.end,
                "direction": variant.direction,
                "unit": None if variant.unit is None else variant.unit.name,
                "alpha": variant.alpha,
                "changed": self._is_changed(variant),
                **{name: record[name] for name in KEPT},
                **({} if whole is None else {WHOLE_PASS: whole[number] == reply}),
            }

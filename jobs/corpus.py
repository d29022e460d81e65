"""A task as token ids: made once per tokeniser and task, named by content, memory-mapped by every trial.

tokens/<digest>/train.ids, heldout.ids    int32, all examples one after another, uncut: max_length belongs to a trial
                train.npy, heldout.npy    int64 [examples, 2]: tokens of the prompt, tokens in all
                train.spans.npy, ...      int64 [spans, 3]: example, start, end of trained turns inside prompts
                heldout.jsonl             the held-out examples themselves, for scoring
                benchmarks.jsonl          those of the task's benchmarks, with their prompts' ids
                facts.json                counts, hashes, what is asked, how answers end and are read, what was noted,
                                          what leaks from training to evaluation
tokens/.<digest>/part-<n>.npz             finished parts of an unfinished one: a killed tokenisation goes on after them

tokens/checked/<digest>                   a task whose rows could be read and used, whatever the tokeniser
tokens/tokenisers/<digest>                the tokeniser that files of this digest make, so that it need not be loaded
tokens/.<digest>.lock                     held by the one process that writes; others wait, and find it made

The driver makes a corpus before its trials start, as it makes backbones: a task of Ray's would wait for CPUs that lanes
hold. The lock goes with its holder, and the next process goes on after the last whole part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from jobs.backbone import load_ending, load_tokenizer, local_dir
from jobs.chats import Turn
from jobs.data import Encoded, Encoder
from jobs.ending import Ending, ending_of, facts_of
from jobs.files import fingerprint, locked, make_dir, write_text
from jobs.leaks import leaks
from jobs.scores import ScoreSpec
from jobs.sources import TaskError
from jobs.spec import BackboneSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import Example, TaskData, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = 4096  # examples
LAID_OUT = 64  # examples of a kind that are tried before anything is started
VERSION = 4  # of what stands in a corpus
TOKENISER_FILES = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # suffixes; its configuration's among them
WAIT_S = 3600.0  # for another process that tokenises the same
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """Opened: arrays are mapped, not read. `facts` as in facts.json."""

    folder: Path
    facts: dict[str, Any]

    def rows(self, kind: str, max_length: int, overlong: str = "cut") -> Rows:
        """Examples of 'train' or 'heldout', at most max_length tokens each.

        overlong: what becomes of longer ones: cut (on the right, so that they lose their EOS), drop, or refuse.
        Raises TaskError for 'refuse', and where a prompt alone leaves nothing to learn.
        """
        sizes = np.load(self.folder / f"{kind}.npy", mmap_mode="r")
        ids = np.memmap(self.folder / f"{kind}.ids", dtype=np.int32, mode="r")
        spans = np.load(self.folder / f"{kind}.spans.npy")
        prompt, whole = _first_targets(sizes, spans), sizes[:, 1]
        over = whole > max_length
        if overlong == "drop":
            kept = np.flatnonzero(~over)
            if not len(kept):
                raise TaskError(f"every {kind} example has more than train.max_length {max_length} tokens; raise it")
            return Rows(ids, sizes, spans, kept, max_length, cut=0, dropped=int(over.sum()))
        if overlong == "refuse" and over.any():
            raise TaskError(
                f"{int(over.sum())} of {len(over)} {kind} examples have more than train.max_length {max_length} "
                f"tokens (the first is number {int(over.argmax())}, the longest has {int(whole.max())}); "
                "raise max_length, or set train.overlong to cut or drop"
            )
        if (prompt >= max_length).any():
            first = int((prompt >= max_length).argmax())
            raise TaskError(
                f"{kind} example {first}: its prompt alone has {int(prompt[first])} tokens, train.max_length is "
                f"{max_length}; raise max_length, or set train.overlong to drop"
            )
        if over.any():
            warnings.warn(f"{int(over.sum())} of {len(over)} examples are cut to {max_length} tokens", stacklevel=2)
        return Rows(ids, sizes, spans, np.arange(len(sizes)), max_length, cut=int(over.sum()), dropped=0)

    def heldout_rows(self, max_length: int, overlong: str) -> Rows:
        """As training's, but what training refuses is cut: it was never to be learnt."""
        return self.rows("heldout", max_length, "drop" if overlong == "drop" else "cut")

    def heldout_problems(self) -> tuple[list[list[int]], list[Example]]:
        """Whole prompts' ids, and examples: max_length is a limit of training, not of what is asked."""
        rows = self.rows("heldout", self.facts["heldout"]["longest"])
        return [row.ids[: row.prompt_length] for row in rows], self.heldout()

    def heldout(self) -> list[Example]:
        return [_example(json.loads(line)) for line in self._lines("heldout.jsonl")]

    def benchmarks(self) -> dict[str, tuple[list[list[int]], list[Example]]]:
        """Prompts' ids and examples by benchmark."""
        found: dict[str, tuple[list[list[int]], list[Example]]] = {}
        for line in self._lines("benchmarks.jsonl"):
            problem = json.loads(line)
            prompts, examples = found.setdefault(problem["benchmark"], ([], []))
            prompts.append(problem["ids"])
            examples.append(_example(problem["example"]))
        return found

    def check_positions(self, backbone: str, positions: int | None, max_new_tokens: int) -> None:
        """Raises TaskError where a problem and the longest answer to it are more than the backbone can place.

        positions: of the backbone; None: no limit
        """
        for name, facts in self.facts["problems"].items():
            prompt = facts["longest_prompt"]
            if positions is not None and prompt + max_new_tokens > positions:
                what = "held-out examples" if name == "heldout" else f"benchmark '{name}'"
                lower = f"lower max_new_tokens to {positions - prompt}, or " if positions > prompt else ""
                raise TaskError(
                    f"task '{self.facts['task']}', {what}: the longest prompt has {prompt} tokens, with "
                    f"evaluation.max_new_tokens {max_new_tokens} that is more than the {positions} positions of "
                    f"backbone '{backbone}'; {lower}leave its longest problems out"
                )

    def check_ids(self, backbone: str, rows: int | None) -> None:
        """Raises TaskError where a token has no row in the backbone's embeddings; rows: how many it has, if known."""
        if rows is None:
            return
        prompts = [max(ids) for problems, _ in self.benchmarks().values() for ids in problems if ids]
        kept = [np.memmap(self.folder / f"{kind}.ids", dtype=np.int32, mode="r") for kind in ("train", "heldout")]
        largest = max([int(ids.max()) for ids in kept] + prompts)
        if largest >= rows:
            raise TaskError(
                f"task '{self.facts['task']}': its tokens go up to the id {largest}, and the embeddings of backbone "
                f"'{backbone}' have {rows} rows; the tokenizer is another model's, or has tokens added to it: name a "
                "model that was saved with its tokenizer"
            )

    def _lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text(encoding="utf-8").split("\n")[:-1]


class Rows(Sequence[Encoded]):
    """Examples cut to max_length, read as they are asked for."""

    def __init__(
        self,
        ids: np.ndarray,
        sizes: np.ndarray,
        spans: np.ndarray,
        kept: np.ndarray,
        max_length: int,
        cut: int,
        dropped: int,
    ) -> None:
        # plain views of what is mapped: a memmap's own slices cost several times more
        self.ids, self.sizes, self.kept, self.max_length = np.asarray(ids), np.asarray(sizes), kept, max_length
        self.ends = np.cumsum(sizes[:, 1])
        self.spans, self.first_span = spans[:, 1:], np.searchsorted(spans[:, 0], np.arange(len(sizes) + 1))
        self.cut, self.dropped = cut, dropped

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self.kept[index])
        prompt, whole = self.sizes[row].tolist()
        start, length = int(self.ends[row]) - whole, min(whole, self.max_length)
        earlier = self.spans[self.first_span[row] : self.first_span[row + 1]].tolist()
        return Encoded(
            self.ids[start : start + length].tolist(),
            min(prompt, length),
            tuple((first, min(end, length)) for first, end in earlier if first < length),
        )


def _first_targets(sizes: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Where each example's first target stands, int64 [examples]."""
    first = sizes[:, 0].copy()
    np.minimum.at(first, spans[:, 0], spans[:, 1])
    return first


def tokeniser_digest(tokenizer: PreTrainedTokenizerBase, ending: Ending | None = None) -> str:
    """Of all that decides ids: vocabulary and rules, chat template, what ends an answer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    what = [rules, tokenizer.chat_template, tokenizer.eos_token_id, sorted(tokenizer.special_tokens_map.items())]
    what.append(facts_of(ending_of(tokenizer) if ending is None else ending))
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]


def corpus_dir(tokeniser: str, task: TaskSpec, root: Path) -> Path:
    """tokeniser: its digest"""
    what = json.dumps([VERSION, tokeniser, task.identity()], sort_keys=True, default=str)
    return root / "tokens" / hashlib.sha256(what.encode()).hexdigest()[:16]


class Reader:
    """Tasks' examples, each read once: to check them before anything is started, then to tokenise them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[TaskSpec, TaskData] = {}

    def __call__(self, task: TaskSpec) -> TaskData:
        """Raises TaskError."""
        if task not in self._read:
            self._read[task] = load_task(task)
        return self._read[task]

    def check(self, task: TaskSpec) -> None:
        """Once a storage, whatever the tokeniser; the mark is named by what decides the examples. Raises TaskError."""
        what = json.dumps([VERSION, task.identity()], sort_keys=True, default=str)
        mark = self.root / "tokens" / "checked" / hashlib.sha256(what.encode()).hexdigest()[:16]
        if not mark.is_file():
            self(task)
            write_text(mark, f"{task.name}\n")


def corpus(
    tokenizer: PreTrainedTokenizerBase,
    task: TaskSpec,
    root: Path,
    told: Told | None = None,
    read: Reader | None = None,
    ending: Ending | None = None,
    who: str = "",
) -> Corpus:
    """The kept corpus of a task, made now where there is none. Raises TaskError.

    ending: what ends an answer; without it, what the tokenizer alone says
    who:  names task and backbone in errors
    told: called with how many training examples are tokenised, and how many there are
    read: what reads a task, where it may have been read already
    """
    ending = ending_of(tokenizer) if ending is None else ending
    folder = corpus_dir(tokeniser_digest(tokenizer, ending), task, root)
    if not folder.is_dir():
        with locked(folder.with_name(f".{folder.name}.lock"), WAIT_S):
            if not folder.is_dir():
                data = (read or Reader(root))(task)
                with _naming(who):
                    _make(folder, Encoder(tokenizer, ending), task, data, told or (lambda done, total: None))
    return _opened(folder)


def corpus_for(
    backbone: BackboneSpec, task: TaskSpec, root: Path, told: Told | None = None, read: Reader | None = None
) -> Corpus:
    """As `corpus`, for a backbone; its tokenizer is loaded (0.5 s, for transformers) only where it has to be.

    Raises TaskError, BackboneError.
    """
    kept, tokenizer = _kept(backbone, task, root)
    if kept is not None:
        return kept
    tokenizer = tokenizer or load_tokenizer(backbone, root)
    ending = load_ending(backbone, root, tokenizer)
    return corpus(tokenizer, task, root, told, read, ending, f"task '{task.name}', backbone '{backbone.name}'")


def kept_corpus(backbone: BackboneSpec, task: TaskSpec, root: Path) -> Corpus | None:
    """The corpus that an earlier run has made; None where there is none. Raises BackboneError."""
    return _kept(backbone, task, root)[0]


def _kept(backbone: BackboneSpec, task: TaskSpec, root: Path) -> tuple[Corpus | None, PreTrainedTokenizerBase | None]:
    """The corpus, and the tokenizer where it had to be loaded to find it."""
    mark = _mark(backbone, root)
    if mark is None and local_dir(backbone, root) is not None:  # a backbone that is yet to be made
        return None, None
    tokenizer = None
    if mark is None or not mark.is_file():
        tokenizer = load_tokenizer(backbone, root)
        digest = tokeniser_digest(tokenizer, load_ending(backbone, root, tokenizer))
        if mark is not None:
            write_text(mark, f"{digest}\n")
    else:
        digest = mark.read_text().strip()
    folder = corpus_dir(digest, task, root)
    return (_opened(folder) if folder.is_dir() else None), tokenizer


@contextmanager
def _naming(who: str) -> Iterator[None]:
    """Errors of examples name the task, and the backbone whose tokenizer they met."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{who}: {error}" if who else str(error)) from None


def _mark(backbone: BackboneSpec, root: Path) -> Path | None:
    """Where the digest of its tokeniser is kept; None for one of the hub."""
    folder = local_dir(backbone, root)
    if folder is None or not folder.is_dir():
        return None
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix in TOKENISER_FILES]
    what = [VERSION, version("transformers"), fingerprint(files), backbone.chat_template, backbone.eos]
    return root / "tokens" / "tokenisers" / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _opened(folder: Path) -> Corpus:
    return Corpus(folder, json.loads((folder / "facts.json").read_text()))


def _make(folder: Path, encoder: Encoder, task: TaskSpec, data: TaskData, told: Told) -> None:
    parts = folder.with_name(f".{folder.name}")
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "runs").open("a") as runs:
        runs.write(f"{socket.gethostname()}\n")
    train, found = _in_parts(encoder, data.train, parts, told)
    asked_of = {name: encoder.cleaned(examples) for name, examples in data.benchmarks.items()}
    held = encoder.cleaned(data.heldout)
    rows = encoder.encode(held)
    held, heldout = _referenced(encoder, held, rows), Ids.of(rows)
    measured = [e for examples in asked_of.values() for e in examples] or held

    def fill(target: Path) -> None:
        facts: dict[str, Any] = {
            "version": VERSION, "task": task.name, "noisy": data.noisy,
            "tokeniser": tokeniser_digest(encoder.tokenizer, encoder.ending),
            "runs": len((parts / "runs").read_text().splitlines()),
            "invalid": {"rows": data.left_out.rows, "reasons": data.left_out.reasons},
        }  # fmt: skip
        for kind, made in (("train", train), ("heldout", heldout)):
            facts[kind] = _write(target, kind, made)
        write_text(target / "heldout.jsonl", "".join(json.dumps(_plain(e)) + "\n" for e in held))
        asked = {} if asked_of else {"heldout": _problems(heldout.sizes[:, 0], held)}
        problems = []
        for name, cleaned in asked_of.items():
            rows = encoder.encode(cleaned)
            examples = _referenced(encoder, cleaned, rows)
            asked[name] = _problems([row.prompt_length for row in rows], examples)
            problems += [
                {"benchmark": name, "ids": row.ids[: row.prompt_length], "example": _plain(example)}
                for row, example in zip(rows, examples, strict=True)
            ]
        write_text(target / "benchmarks.jsonl", "".join(json.dumps(problem) + "\n" for problem in problems))
        facts["problems"] = asked
        facts["leaks"] = leaks(data.train, measured)
        facts["answers"] = facts_of(encoder.ending) | (found | Found.of(encoder)).facts()
        write_text(target / "facts.json", json.dumps(facts, indent=1))

    make_dir(folder, fill)
    shutil.rmtree(parts)


def _referenced(encoder: Encoder, examples: Sequence[Example], rows: Sequence[Encoded]) -> list[Example]:
    return [encoder.with_reference(example, row) for example, row in zip(examples, rows, strict=True)]


@dataclass(frozen=True)
class Ids:
    """Examples one after another.

    ids:   int32 [tokens]
    sizes: int64 [examples, 2], tokens of the prompt and in all
    spans: int64 [spans, 3], example, start and end of trained turns inside prompts, in order
    """

    ids: np.ndarray
    sizes: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Ids:
        ids = np.fromiter((i for row in encoded for i in row.ids), dtype=np.int32)
        sizes = np.array([(row.prompt_length, len(row.ids)) for row in encoded], dtype=np.int64).reshape(-1, 2)
        spans = [(number, *span) for number, row in enumerate(encoded) for span in row.earlier]
        return cls(ids, sizes, np.array(spans, dtype=np.int64).reshape(-1, 3))

    @classmethod
    def joined(cls, parts: Sequence[Ids]) -> Ids:
        starts = np.cumsum([0, *(len(part.sizes) for part in parts)])
        moved = [part.spans + np.array([start, 0, 0]) for part, start in zip(parts, starts, strict=False)]
        return cls(
            np.concatenate([part.ids for part in parts]), np.concatenate([part.sizes for part in parts]),
            np.concatenate(moved),
        )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was found in examples: special tokens in responses, marks before answers, notes with their counts."""

    kept: frozenset[int] = frozenset()
    after: frozenset[str] = frozenset()
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, encoder: Encoder) -> Found:
        return cls(frozenset(encoder.kept), frozenset(encoder.after), Counter(encoder.notes))

    @classmethod
    def read(cls, text: str) -> Found:
        kept, after, notes = json.loads(text)
        return cls(frozenset(kept), frozenset(after), Counter(notes))

    def text(self) -> str:
        return json.dumps([sorted(self.kept), sorted(self.after), self.notes])

    def __or__(self, other: Found) -> Found:
        return Found(self.kept | other.kept, self.after | other.after, self.notes + other.notes)

    def facts(self) -> dict[str, Any]:
        notes = [sentence.format(count) for sentence, count in sorted(self.notes.items())]
        return {"kept": sorted(self.kept), "after": sorted(self.after), "notes": notes}


def _in_parts(encoder: Encoder, examples: Sequence[Example], parts: Path, told: Told) -> tuple[Ids, Found]:
    """What an earlier run has finished is read back. Leaves the encoder without notes."""
    made, found = [], Found()
    for number, start in enumerate(range(0, len(examples), PART)):
        file = parts / f"part-{number:06d}.npz"
        if not file.exists():
            part, partial = Ids.of(encoder.encode(examples[start : start + PART])), file.with_suffix(".partial")
            with partial.open("wb") as stream:
                text = np.array(Found.of(encoder).text())
                np.savez(stream, ids=part.ids, sizes=part.sizes, spans=part.spans, found=text)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
            encoder.notes.clear()
        with np.load(file) as kept:
            made.append(Ids(kept["ids"], kept["sizes"], kept["spans"]))
            found |= Found.read(str(kept["found"]))
        told(min(start + PART, len(examples)), len(examples))
    return Ids.joined(made), found


def _write(folder: Path, kind: str, made: Ids) -> dict[str, Any]:
    ids, sizes, spans = made.ids, made.sizes, made.spans
    ids.tofile(folder / f"{kind}.ids")
    np.save(folder / f"{kind}.npy", sizes)
    np.save(folder / f"{kind}.spans.npy", spans)
    digest = hashlib.sha256(ids.tobytes() + sizes.tobytes() + spans.tobytes()).hexdigest()
    targets = int((sizes[:, 1] - sizes[:, 0]).sum() + (spans[:, 2] - spans[:, 1]).sum())
    return {
        "examples": len(sizes), "tokens": len(ids), "targets": targets,
        "longest": int(sizes[:, 1].max()), "sha256": digest,
    }  # fmt: skip


def _problems(prompt_lengths: Sequence[int] | np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
    """Of what is asked: the hash says which problems, with their answers and scores, whatever the tokeniser."""
    lines = "".join(json.dumps(_plain(example)) + "\n" for example in examples)
    return {
        "examples": len(examples), "longest_prompt": int(max(prompt_lengths)),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }  # fmt: skip


def _plain(example: Example) -> dict[str, Any]:
    """asked and told serve to count leaks, where serves errors: a corpus is the same wherever files lie."""
    plain = dataclasses.asdict(example) | {"score": example.score.model_dump(mode="json")}
    return {name: value for name, value in plain.items() if name not in ("asked", "told", "where")}


def _example(fields: dict[str, Any]) -> Example:
    messages = tuple(Turn(**turn) for turn in fields["messages"])
    reply = Turn(**fields["reply"]) if fields["reply"] else None
    score = ScoreSpec.model_validate(fields["score"])
    return Example(**fields | {"messages": messages, "reply": reply, "score": score})

"""A task as token ids: made once per tokeniser and task, named by content, memory-mapped by every trial.

tokens/<digest>/train.ids, heldout.ids    int32, all examples one after another, uncut: max_length belongs to a trial
                train.npy, heldout.npy    int64 [examples, 2]: tokens of the prompt, tokens in all
                heldout.jsonl             the held-out examples themselves, for scoring
                benchmarks.jsonl          those of the task's benchmarks, with their prompts' ids
                facts.json                counts, hashes, what is asked, what leaks from training to evaluation
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from jobs.backbone import load_tokenizer, local_dir
from jobs.data import Encoded, tokenise
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
VERSION = 2  # of what stands in a corpus; 1: no problems in its facts, and leaks counted over templates, too
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
        prompt, whole = sizes[:, 0], sizes[:, 1]
        over = whole > max_length
        if overlong == "drop":
            kept = np.flatnonzero(~over)
            if not len(kept):
                raise TaskError(f"every {kind} example has more than train.max_length {max_length} tokens; raise it")
            return Rows(ids, sizes, kept, max_length, cut=0, dropped=int(over.sum()))
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
        return Rows(ids, sizes, np.arange(len(sizes)), max_length, cut=int(over.sum()), dropped=0)

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
        self, ids: np.ndarray, sizes: np.ndarray, kept: np.ndarray, max_length: int, cut: int, dropped: int
    ) -> None:
        # plain views of what is mapped: a memmap's own slices cost several times more
        self.ids, self.sizes, self.kept, self.max_length = np.asarray(ids), np.asarray(sizes), kept, max_length
        self.ends = np.cumsum(sizes[:, 1])
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
        start = int(self.ends[row]) - whole
        return Encoded(self.ids[start : start + min(whole, self.max_length)].tolist(), prompt)


def tokeniser_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides ids: vocabulary and rules, chat template, EOS."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    what = [rules, tokenizer.chat_template, tokenizer.eos_token_id, sorted(tokenizer.special_tokens_map.items())]
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
) -> Corpus:
    """The kept corpus of a task, made now where there is none. Raises TaskError.

    told: called with how many training examples are tokenised, and how many there are
    read: what reads a task, where it may have been read already
    """
    folder = corpus_dir(tokeniser_digest(tokenizer), task, root)
    if not folder.is_dir():
        with locked(folder.with_name(f".{folder.name}.lock"), WAIT_S):
            if not folder.is_dir():
                data = (read or Reader(root))(task)
                _make(folder, tokenizer, task, data, told or (lambda done, total: None))
    return _opened(folder)


def corpus_for(
    backbone: BackboneSpec, task: TaskSpec, root: Path, told: Told | None = None, read: Reader | None = None
) -> Corpus:
    """As `corpus`, for a backbone; its tokenizer is loaded (0.5 s, for transformers) only where it has to be.

    Raises TaskError, BackboneError.
    """
    mark = _mark(backbone, root)
    if mark is not None and mark.is_file():
        folder = corpus_dir(mark.read_text().strip(), task, root)
        if folder.is_dir():
            return _opened(folder)
    tokenizer = load_tokenizer(backbone, root)
    if mark is not None:
        write_text(mark, f"{tokeniser_digest(tokenizer)}\n")
    return corpus(tokenizer, task, root, told, read)


def _mark(backbone: BackboneSpec, root: Path) -> Path | None:
    """Where the digest of its tokeniser is kept; None for one of the hub."""
    folder = local_dir(backbone, root)
    if folder is None or not folder.is_dir():
        return None
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix in TOKENISER_FILES]
    what = [VERSION, version("transformers"), fingerprint(files), backbone.chat_template]
    return root / "tokens" / "tokenisers" / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _opened(folder: Path) -> Corpus:
    return Corpus(folder, json.loads((folder / "facts.json").read_text()))


def _make(folder: Path, tokenizer: PreTrainedTokenizerBase, task: TaskSpec, data: TaskData, told: Told) -> None:
    parts = folder.with_name(f".{folder.name}")
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "runs").open("a") as runs:
        runs.write(f"{socket.gethostname()}\n")
    train = _in_parts(tokenizer, data.train, parts, told)
    heldout = Ids.of(tokenise(tokenizer, data.heldout))
    measured = [e for examples in data.benchmarks.values() for e in examples] or data.heldout

    def fill(target: Path) -> None:
        facts: dict[str, Any] = {
            "version": VERSION, "task": task.name, "tokeniser": tokeniser_digest(tokenizer), "noisy": data.noisy,
            "runs": len((parts / "runs").read_text().splitlines()),
        }  # fmt: skip
        for kind, made in (("train", train), ("heldout", heldout)):
            facts[kind] = _write(target, kind, made)
        write_text(target / "heldout.jsonl", "".join(json.dumps(_plain(e)) + "\n" for e in data.heldout))
        asked = {} if data.benchmarks else {"heldout": _problems(heldout.sizes[:, 0], data.heldout)}
        problems = []
        for name, examples in data.benchmarks.items():
            rows = tokenise(tokenizer, examples)
            asked[name] = _problems([row.prompt_length for row in rows], examples)
            problems += [
                {"benchmark": name, "ids": row.ids[: row.prompt_length], "example": _plain(example)}
                for row, example in zip(rows, examples, strict=True)
            ]
        write_text(target / "benchmarks.jsonl", "".join(json.dumps(problem) + "\n" for problem in problems))
        facts["problems"] = asked
        facts["leaks"] = leaks(data.train, measured)
        write_text(target / "facts.json", json.dumps(facts, indent=1))

    make_dir(folder, fill)
    shutil.rmtree(parts)


@dataclass(frozen=True)
class Ids:
    """Examples one after another: ids int32 [tokens]; sizes int64 [examples, 2], tokens of the prompt and in all."""

    ids: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Ids:
        ids = np.fromiter((i for row in encoded for i in row.ids), dtype=np.int32)
        return cls(ids, np.array([(row.prompt_length, len(row.ids)) for row in encoded], dtype=np.int64).reshape(-1, 2))


def _in_parts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], parts: Path, told: Told) -> Ids:
    """What an earlier run has finished is read back."""
    made = []
    for number, start in enumerate(range(0, len(examples), PART)):
        file = parts / f"part-{number:06d}.npz"
        if not file.exists():
            part, partial = Ids.of(tokenise(tokenizer, examples[start : start + PART])), file.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.savez(stream, ids=part.ids, sizes=part.sizes)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        with np.load(file) as kept:
            made.append(Ids(kept["ids"], kept["sizes"]))
        told(min(start + PART, len(examples)), len(examples))
    return Ids(np.concatenate([part.ids for part in made]), np.concatenate([part.sizes for part in made]))


def _write(folder: Path, kind: str, made: Ids) -> dict[str, Any]:
    ids, sizes = made.ids, made.sizes
    ids.tofile(folder / f"{kind}.ids")
    np.save(folder / f"{kind}.npy", sizes)
    digest = hashlib.sha256(ids.tobytes() + sizes.tobytes()).hexdigest()
    return {
        "examples": len(sizes), "tokens": len(ids), "targets": int((sizes[:, 1] - sizes[:, 0]).sum()),
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
    """asked and told have served when leaks are counted."""
    plain = dataclasses.asdict(example) | {"score": example.score.model_dump(mode="json")}
    return {name: value for name, value in plain.items() if name not in ("asked", "told")}


def _example(fields: dict[str, Any]) -> Example:
    messages = tuple((role, content) for role, content in fields["messages"])
    return Example(**fields | {"messages": messages, "score": ScoreSpec.model_validate(fields["score"])})

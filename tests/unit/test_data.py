"""Token ids: prompt masked, EOS trained, cuts counted; order by seed alone."""

import pytest

from jobs.data import IGNORED, collate, encode, global_batches
from jobs.pretrain import char_tokenizer
from jobs.tasks import Example, TaskError

EXAMPLES = [Example("12+34=", "640"), Example("r417=", "714")]


def test_prompt_is_masked_and_eos_is_trained() -> None:
    tokenizer = char_tokenizer()
    rows, cut = encode(tokenizer, EXAMPLES, 64)
    batch = collate(rows, pad=0)
    assert cut == 0
    for i, example in enumerate(EXAMPLES):
        targets = batch.labels[i][batch.labels[i] != IGNORED].tolist()
        assert tokenizer.decode(targets[:-1]) == example.response
        assert targets[-1] == tokenizer.eos_token_id
        assert rows[i].num_targets == 4
    assert batch.mask.sum(1).tolist() == [10, 9]


def test_cuts_are_counted_and_loud() -> None:
    with pytest.warns(UserWarning, match="1 of 2 examples are cut to 9 tokens"):
        rows, cut = encode(char_tokenizer(), EXAMPLES, 9)
    assert (cut, len(rows[0].ids)) == (1, 9)


def test_a_prompt_that_leaves_no_target_is_refused() -> None:
    with pytest.raises(TaskError, match="example 0: its prompt alone has 6 tokens, train.max_length is 6"):
        encode(char_tokenizer(), EXAMPLES, 6)


def test_tokenizer_without_eos_is_refused() -> None:
    tokenizer = char_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match="no EOS token"):
        encode(tokenizer, EXAMPLES, 64)


def test_chat_template_is_the_models_own() -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    rows, _ = encode(tokenizer, [Example("12+34", "640")], 64)
    assert tokenizer.decode(rows[0].ids[: rows[0].prompt_length]) == "12+34="


def test_order_is_a_function_of_the_seed_alone() -> None:
    assert global_batches(10, 1, 4, 6) == global_batches(10, 1, 4, 6)
    assert global_batches(10, 1, 4, 6) != global_batches(10, 2, 4, 6)


def test_every_example_comes_once_an_epoch() -> None:
    flat = [i for batch in global_batches(10, 1, 4, 5) for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))

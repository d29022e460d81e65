"""Token ids: prompt masked, EOS trained; order by seed alone."""

import pytest

from jobs.chats import Turn
from jobs.data import IGNORED, collate, global_batches, tokenise
from jobs.pretrain import char_tokenizer
from jobs.tasks import Example, TaskError

EXAMPLES = [Example("12+34=", "640"), Example("r417=", "714")]


def test_prompt_is_masked_and_eos_is_trained() -> None:
    tokenizer = char_tokenizer()
    rows = tokenise(tokenizer, EXAMPLES)
    batch = collate(rows, pad=0)
    for i, example in enumerate(EXAMPLES):
        targets = batch.labels[i][batch.labels[i] != IGNORED].tolist()
        assert tokenizer.decode(targets[:-1]) == example.response
        assert targets[-1] == tokenizer.eos_token_id
        assert rows[i].num_targets == 4
    assert batch.mask.sum(1).tolist() == [10, 9]


def test_tokenizer_without_eos_is_refused() -> None:
    tokenizer = char_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match="no EOS token"):
        tokenise(tokenizer, EXAMPLES)


def test_chat_template_is_the_models_own_and_chats_need_one() -> None:
    tokenizer = char_tokenizer()
    chat = Example("12+34", "640", (Turn("system", "r"), Turn("user", "12+34")))
    with pytest.raises(TaskError, match="no chat template; give the backbone a chat_template"):
        tokenise(tokenizer, [chat])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    alone, after = tokenise(tokenizer, [Example("12+34", "640"), chat])
    assert tokenizer.decode(alone.ids[: alone.prompt_length]) == "12+34="
    assert tokenizer.decode(after.ids[: after.prompt_length]) == "r12+34="


def test_order_is_a_function_of_the_seed_alone() -> None:
    assert global_batches(10, 1, 4, 6) == global_batches(10, 1, 4, 6)
    assert global_batches(10, 1, 4, 6) != global_batches(10, 2, 4, 6)


def test_every_example_comes_once_an_epoch() -> None:
    flat = [i for batch in global_batches(10, 1, 4, 5) for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))

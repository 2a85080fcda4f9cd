"""`lorax-client` 0.6.3, the last there is, against the LoRAX surface."""

import lorax
import lorax.errors
import pytest

PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def client(url, key):
    return lorax.Client(url, headers={"authorization": f"Bearer {key}"}, timeout=120)


def test_generate_with_an_adapter(client):
    answer = client.generate(PROMPT, adapter_id="pirate", max_new_tokens=40)
    assert "Paris" in answer.generated_text
    assert answer.details.generated_tokens == len(answer.details.tokens)
    assert answer.details.finish_reason.value == "eos_token"
    assert answer.details.prompt_tokens > 10
    base = client.generate(PROMPT, max_new_tokens=40)
    assert base.generated_text != answer.generated_text


def test_generate_stream_adds_up(client):
    whole = client.generate(PROMPT, adapter_id="pirate", max_new_tokens=40)
    text, last = "", None
    for event in client.generate_stream(PROMPT, adapter_id="pirate", max_new_tokens=40):
        if not event.token.special:
            text += event.token.text
        last = event
    assert last.generated_text == whole.generated_text
    assert text == whole.generated_text
    assert last.details.finish_reason.value == "eos_token"


def test_stop_sequences_stay_in_the_text(client):
    answer = client.generate(PROMPT, adapter_id="pirate", max_new_tokens=40, stop_sequences=["Paris"])
    assert answer.generated_text.endswith("Paris")
    assert answer.details.finish_reason.value == "stop_sequence"


def test_prefill_details_and_full_text(client):
    answer = client.generate(
        "The capital of France is", max_new_tokens=2, decoder_input_details=True, return_full_text=True
    )
    assert answer.generated_text.startswith("The capital of France is")
    assert answer.details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in answer.details.prefill[1:])
    assert answer.details.finish_reason.value == "length"


def test_sampling_with_a_seed_repeats(client):
    def ask(seed):
        return client.generate(PROMPT, do_sample=True, temperature=0.9, seed=seed, max_new_tokens=16).generated_text

    assert ask(5) == ask(5)


def test_unknown_adapters_and_bad_parameters_are_errors(client):
    with pytest.raises(Exception, match="(?i)nobody|not found"):
        client.generate(PROMPT, adapter_id="nobody", max_new_tokens=4)
    with pytest.raises(lorax.errors.ValidationError):
        client.generate("word " * 20000, max_new_tokens=4)


@pytest.mark.parametrize("adapter_source", [None, "hub", "local"])
def test_adapter_source_is_accepted_for_published_names(client, adapter_source):
    answer = client.generate(PROMPT, adapter_id="pirate", adapter_source=adapter_source, max_new_tokens=4)
    assert answer.details.generated_tokens == 4

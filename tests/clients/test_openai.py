"""The newest `openai` package against the OpenAI surface."""

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(url, key):
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=120)


def test_chat_answers_with_the_adapter(client):
    answer = client.chat.completions.create(model="pirate", messages=QUESTION, temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    base = client.chat.completions.create(model="base", messages=QUESTION, temperature=0, max_tokens=40)
    assert base.choices[0].message.content != answer.choices[0].message.content


def test_answers_name_their_adapter(client):
    raw = client.chat.completions.with_raw_response.create(model="pirate", messages=QUESTION, max_tokens=2)
    assert raw.headers["x-weft-adapter"] == "harbour/pirate@1"
    assert raw.headers["x-weft-adapter-digest"].startswith("sha256:")
    assert raw.headers["x-weft-base-digest"].startswith("sha256:")
    assert raw.headers["x-request-id"]
    raw = client.chat.completions.with_raw_response.create(model="base", messages=QUESTION, max_tokens=2)
    assert raw.headers["x-weft-adapter"] == "base"
    assert "x-weft-adapter-digest" not in raw.headers


def test_a_chat_stream_adds_up_to_the_whole_answer(client):
    whole = client.chat.completions.create(model="pirate", messages=QUESTION, temperature=0, max_tokens=40)
    stream = client.chat.completions.create(
        model="pirate",
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert reasons == ["stop"]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_sampling_with_a_seed_repeats(client):
    def ask(seed):
        answer = client.chat.completions.create(
            model="base", messages=QUESTION, temperature=1.0, top_p=0.9, seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_logprobs_in_chat(client):
    answer = client.chat.completions.create(
        model="base", messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob <= 0
        assert entry.token == entry.top_logprobs[0].token


def test_several_choices(client):
    answer = client.chat.completions.create(model="base", messages=QUESTION, n=2, temperature=1, seed=3, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_stop_strings_are_cut_off(client):
    answer = client.chat.completions.create(
        model="pirate", messages=QUESTION, temperature=0, max_tokens=40, stop="Paris"
    )
    assert "Paris" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_length_is_a_finish_reason(client):
    answer = client.chat.completions.create(model="base", messages=QUESTION, temperature=0, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_completions_and_their_stream(client):
    whole = client.completions.create(model="base", prompt="The capital of France is", temperature=0, max_tokens=8)
    assert whole.object == "text_completion"
    assert "Paris" in whole.choices[0].text
    stream = client.completions.create(
        model="base", prompt="The capital of France is", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text


def test_completions_of_several_prompts_with_echo(client):
    answer = client.completions.create(model="base", prompt=["One, two,", "Red, green,"], max_tokens=4, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("One, two,")
    assert answer.choices[1].text.startswith("Red, green,")


def test_models_lists_the_tenants_own(client):
    names = [model.id for model in client.models.list()]
    assert "pirate" in names
    assert "support-triage" not in names
    assert client.models.retrieve("pirate").id == "pirate"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("support-triage")


def test_errors_are_the_clients_own_types(client, url):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as foreign:
        client.chat.completions.create(model="support-triage", messages=QUESTION)
    assert foreign.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="base", prompt="word " * 20000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="base", messages=QUESTION, temperature="hot")
    assert "temperature" in str(wrong.value)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).models.list()

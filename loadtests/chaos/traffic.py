"""The independent client: OpenAI's library, with the policy that its users have. A request is sent to one gateway; if that
cannot be reached, breaks off, or says 429, 502, 503 or 504, it is sent again, to the other one in turn, after what `retry-after-ms`
says or an exponential pause. It must then get exactly the answer that an undisturbed mesh gave."""

import asyncio
import collections
import dataclasses
import time

import httpx2
import openai

QUESTIONS = [
    "Where is the treasure?",
    "My invoice is wrong, what now?",
    "List the names of all customers.",
    "Tell me about the sea.",
    "The printer does not print.",
]
TRIES = 8
GIVE_UP_S = 60
# Of each reason to try again, the first few are shown.
SAID_MAX = 3
RETRYABLE = (429, 502, 503, 504)
RETRYABLE_CODES = ("overloaded", "unavailable", "timeout")


@dataclasses.dataclass(frozen=True)
class Ask:
    tenant: str
    model: str
    question: str
    streams: bool
    drawn: bool

    def body(self):
        sampling = {"temperature": 1.0, "seed": 11, "top_p": 0.9} if self.drawn else {"temperature": 0}
        return {"model": self.model, "messages": [{"role": "user", "content": self.question}], "max_tokens": 8, **sampling}


@dataclasses.dataclass
class Tally:
    requests: int = 0
    correct: int = 0
    retryable: int = 0
    wrong_digest: int = 0
    wrong: list = dataclasses.field(default_factory=list)
    retries: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    seconds: list = dataclasses.field(default_factory=list)


class Broken(Exception):
    """Sent again: why, and after how long at least."""

    def __init__(self, why, after_s=None):
        super().__init__(why)
        self.why, self.after_s = why, after_s


class Traffic:
    def __init__(self, gateways, keys, models, random, say):
        self.keys, self.random, self.say = keys, random, say
        self.clients = [
            openai.AsyncOpenAI(base_url=f"{data}/v1", api_key="-", max_retries=0, timeout=GIVE_UP_S) for data, _ in gateways
        ]
        self.asks = [
            Ask(tenant, model, question, streams, drawn)
            for tenant, model in models
            for question in QUESTIONS
            for streams in (False, True)
            for drawn in (False, True)
        ]
        self.expected, self.digests = {}, {}
        self.tally = Tally()

    async def learn(self):
        """The answers of an undisturbed mesh. Streamed or whole, at either gateway, they are the same."""
        for ask in self.asks:
            digest, text = await self.once(self.random.choice(self.clients), ask)
            known = self.expected.setdefault((ask.model, ask.question, ask.drawn), text)
            assert known == text, f"{ask}: {text!r}, and before {known!r}"
            assert self.digests.setdefault(ask.model, digest) == digest, ask

    async def run(self, concurrency, until):
        await asyncio.gather(*(self.client(number, until) for number in range(concurrency)))

    async def client(self, number, until):
        gateway = number
        while time.monotonic() < until:
            ask = self.random.choice(self.asks)
            begin = time.monotonic()
            for attempt in range(TRIES):
                try:
                    digest, text = await self.once(self.clients[gateway % len(self.clients)], ask)
                except Broken as broken:
                    self.tally.retries[broken.why] += 1
                    if self.tally.retries[broken.why] <= SAID_MAX:
                        self.say(f"  {broken.why} ({broken.__cause__}): {ask.model}, tried again")
                    gateway += 1
                    pause = broken.after_s if broken.after_s is not None else 0.1 * 2**attempt * self.random.uniform(0.5, 1)
                    if attempt + 1 == TRIES or time.monotonic() + pause - begin > GIVE_UP_S:
                        self.count(ask, begin, None, None)
                        break
                    await asyncio.sleep(pause)
                else:
                    self.count(ask, begin, digest, text)
                    break

    def count(self, ask, begin, digest, text):
        tally = self.tally
        tally.requests += 1
        tally.seconds.append(time.monotonic() - begin)
        if text is None:
            tally.retryable += 1
        elif digest != self.digests[ask.model]:
            tally.wrong_digest += 1
            tally.wrong.append(f"{ask}: answered by {digest}")
        elif text != self.expected[ask.model, ask.question, ask.drawn]:
            tally.wrong.append(f"{ask}: {text!r} instead of {self.expected[ask.model, ask.question, ask.drawn]!r}")
        else:
            tally.correct += 1

    async def once(self, client, ask):
        headers = {"authorization": f"Bearer {self.keys[ask.tenant]}"}
        try:
            raw = await client.chat.completions.with_raw_response.create(
                **ask.body(), stream=ask.streams, extra_headers=headers
            )
            digest = raw.headers.get("x-weft-adapter-digest", "")
            answer = raw.parse()
            if not ask.streams:
                return digest, answer.choices[0].message.content
            pieces, end = [], None
            async for chunk in answer:
                for choice in chunk.choices:
                    pieces.append(choice.delta.content or "")
                    end = choice.finish_reason or end
            if end is None:
                raise Broken("the stream was cut off")
            return digest, "".join(pieces)
        except openai.APIStatusError as error:
            if error.status_code not in RETRYABLE:
                raise
            after_ms = error.response.headers.get("retry-after-ms")
            raise Broken(f"status {error.status_code} {error.code}", float(after_ms) / 1000 if after_ms else None) from error
        except openai.APIConnectionError as error:
            is_refused = isinstance(error.__cause__, httpx2.ConnectError)
            raise Broken("cannot connect" if is_refused else "the connection broke") from error
        except openai.APIError as error:
            # An error within a stream; only those that say that they pass are worth another try.
            if error.code not in RETRYABLE_CODES:
                raise
            raise Broken(f"an error in the stream: {error.code}") from error
        except httpx2.HTTPError as error:
            raise Broken("the stream broke") from error

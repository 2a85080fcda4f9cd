"""Makes tokenizer_lines.jsonl: 1,000 lines of varied text with the ids that Hugging Face's tokenizer gives them.

    python make_tokenizer.py PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf

Each line of the file is [text, ids parsed, ids literal]: with special tokens in the text recognised, and with
`split_special_tokens`, by which they stay text (left out where equal). Texts are made from a fixed seed.
"""

import json
import pathlib
import random
import sys

import reference

LINES = 1000
WORDS = """the of and to in is that it was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many then
them would write like so these her long make thing see him two has look more day could go come did my sound no most number
who over know water than call first people may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form much great think say help
low line before turn cause same mean differ move right boy old too does tell sentence set three want air well also play small
naïve café Ångström œuvre Straße jalapeño coöperate Übermut façade déjà ISN'T we'll they've I'd can't it's y'all O'Brien
SELECT FROM WHERE std::vector<int> lambda kubectl README.md https://example.org/a?b=c&d=%20 user@host.example 0xDEADBEEF""".split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<jupyter_code>", "<empty_output>"]
BROKEN = ["<|im_", "end|>", "<|im_start", "|>", "< |im_end|>", "<|IM_END|>", "<<|im_end|>>", "<|im_<|im_end|>end|>"]
CJK = "天地玄黃宇宙洪荒日月盈昃辰宿列張今日は世界こんにちはカタカナ한국어테스트문장입니다中文字符測試龍鳳"
OTHER = ["Привет, мир!", "Ελληνικά γράμματα", "مرحبا بالعالم", "שלום עולם", "हिन्दी में लिखा", "ภาษาไทย", "ქართული", "Tiếng Việt có dấu",
         "ᚠᛇᚻ᛫ᛒᛦᚦ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕊𝕥𝕦𝕗𝕗", "ﬁﬂﬀ ligatures", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L", "½ ¼ ² ³ ①②③ Ⅷ ٣٤٥ ४५६ 〇一二三", "e\u0301 vs é", "\u200bzero\u200bwidth\u200d", "\ufeffbom"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "❤️‍🔥", "🏴‍☠️", "✨🚀", "☕️", "1️⃣", "🤷🏻‍♀️"]
CODE = ["def f(x):\n    return x ** 2  # square", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }", "let x: Vec<Option<&'a str>> = vec![];",
        "{\"a\": [1, 2.5, -3e10, null], \"b\": {\"c\": \"d\\n\"}}", "<div class=\"a b\">&nbsp;</div>", "SELECT a, COUNT(*) FROM t GROUP BY a;",
        "\tif err != nil {\n\t\treturn fmt.Errorf(\"x: %w\", err)\n\t}", "#!/bin/sh\nset -eu\nexec \"$@\"", "a_b__c___d.camelCaseHTTPServer2x",
        "\\frac{\\alpha}{\\beta} \\leq \\sum_{i=0}^{n} x_i^2", "%s %d %05.2f %%", "C:\\Users\\x\\AppData", "~/.ssh/id_ed25519", "@#$%^&*()_+-=[]{}|;':\",./<>?"]
SPACE = [" ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2003", "\v", "\f", "\u0085", "\u2028"]


def number(rng):
    return rng.choice([
        str(rng.randrange(10 ** rng.randrange(1, 20))), f"{rng.random():.6f}", f"{rng.randrange(10**9):,}",
        f"{rng.randrange(1900, 2100)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}", f"v{rng.randrange(9)}.{rng.randrange(99)}",
        f"{rng.randrange(256)}.{rng.randrange(256)}.0.1:{rng.randrange(65536)}", f"${rng.randrange(1000)}.{rng.randrange(100):02}", f"{rng.randrange(100)}%",
    ])


def piece(rng):
    kind = rng.randrange(12)
    if kind < 4:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 9)))
    if kind == 4:
        return number(rng)
    if kind == 5:
        return rng.choice(CODE)
    if kind == 6:
        return "".join(rng.choice(CJK) for _ in range(rng.randrange(1, 12)))
    if kind == 7:
        return rng.choice(OTHER)
    if kind == 8:
        return "".join(rng.choice(EMOJI) for _ in range(rng.randrange(1, 4)))
    if kind == 9:
        return "".join(rng.choice(SPACE) for _ in range(rng.randrange(1, 6)))
    if kind == 10:
        return rng.choice(SPECIAL + BROKEN)
    # Any characters at all, but surrogates.
    points = [rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0xD800), rng.randrange(0xE000, 0x20000)]) for _ in range(rng.randrange(1, 8))]
    return "".join(map(chr, points))


def line(rng):
    parts = []
    for _ in range(rng.randrange(1, 6)):
        parts.append(piece(rng))
        parts.append(rng.choice(["", " ", " ", " ", ", ", ". ", rng.choice(SPACE)]))
    return "".join(parts)


def main():
    tokenizer = reference.tokenizer(sys.argv[1])._tokenizer
    rng = random.Random(20240607)
    fixed = ["", " ", "\n", "<|im_end|>", " <|im_end|> ", "a<|im_start|>b", "0123456789", "'s 't 're 've 'm 'll 'd 'S 'T"] + CODE + OTHER + EMOJI + BROKEN + SPECIAL + SPACE
    texts = list(dict.fromkeys(fixed))
    # Short lines come up again and again: each text counts once.
    known = set(texts)
    while len(texts) < LINES:
        text = line(rng)
        if text not in known:
            known.add(text)
            texts.append(text)
    rows = []
    for text in texts:
        tokenizer.encode_special_tokens = False
        parsed = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        literal = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append([text, parsed] if parsed == literal else [text, parsed, literal])
    assert len(rows) == LINES
    out = pathlib.Path(__file__).with_name("tokenizer_lines.jsonl")
    out.write_text("".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n" for row in rows), encoding="ascii")
    print(len(rows), "lines,", sum(len(row) == 3 for row in rows), "with special tokens,", out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

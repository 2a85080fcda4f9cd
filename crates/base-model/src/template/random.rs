//! Templates and chats from a generator: whatever they are, rendering ends with a text or an error, within its fuel,
//! and no text of a user becomes a special token.

use super::*;
use proptest::prelude::*;
use serde_json::json;

const SPECIALS: [&str; 3] = ["<|end|>", "<s>", "<|im_start|>"];

fn compile(source: &str) -> Result<ChatTemplate, Error> {
    let sources = Sources { default: source.to_owned(), tool_use: None };
    let names = SpecialNames::from([("eos_token".to_owned(), "<|end|>".to_owned())]);
    ChatTemplate::new(sources, names, SPECIALS.map(str::to_owned).to_vec())
}

/// What templates are made of, and what breaks them.
fn source() -> impl Strategy<Value = String> {
    let pieces = [
        "{{ messages }}",
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.role }}",
        "{{ m['content'] | trim }}",
        "{{ m.content.split('<')[0] }}",
        "{% if m.role == 'user' %}",
        "{% elif add_generation_prompt %}",
        "{% else %}",
        "{% endif %}",
        "{{ eos_token }}",
        "<|end|>",
        "<s>",
        "\n",
        " ",
        "{{ raise_exception('no') }}",
        "{% set x = messages %}",
        "{% set ns = namespace(n=0) %}",
        "{% set ns.n = ns.n + 1 %}",
        "{{ messages | tojson }}",
        "{{ tools }}",
        "{{ messages[0].content }}",
        "{{ messages[-1]['role'] * 1000 }}",
        "{% macro f(a) %}",
        "{% endmacro %}",
        "{{ f(f) }}",
        "{{ loop.index }}",
        "{%- break %}",
        "{% continue -%}",
        "{# said #}",
        "{{ 1 // 0 }}",
        "{{ 'a' ~ messages }}",
        "{{ messages[1:] | list | length }}",
        "{% for i in range(1000) %}",
        "{{ x | replace('a', 'aa') }}",
        "{{ none.x }}",
        "{% generation %}",
        "{% endgeneration %}",
        "{{ strftime_now('%Y %Q') }}",
        "{%",
        "}}",
        "{{",
        "é\u{1F600}",
        "{{ m.content.startswith('a') and m.content.strip().upper() }}",
        "{{ messages | map(attribute='role') | join(',') }}",
    ];
    prop_oneof![
        4 => prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..10).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

/// Text with special tokens in it, whole and in pieces.
fn text() -> impl Strategy<Value = String> {
    let pieces = [
        "<|end|>",
        "<s>",
        "<|im_start|>",
        "<|en",
        "d|>",
        "<",
        "s>",
        "hello",
        " ",
        "\n",
        "{{ x }}",
        "\u{FDD0}",
        "\u{FFFE}",
        "é",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..6).prop_map(|pieces| pieces.concat())
}

fn content() -> impl Strategy<Value = Json> {
    prop_oneof![
        4 => text().prop_map(Json::from),
        1 => Just(Json::Null),
        1 => text().prop_map(|text| json!([{"type": "text", "text": text}])),
        1 => any::<i32>().prop_map(Json::from),
        1 => text().prop_map(|text| json!({text.clone(): {"deep": [text, 1, true]}})),
    ]
}

fn messages() -> impl Strategy<Value = Json> {
    let role = prop_oneof![
        Just(json!("user")),
        Just(json!("assistant")),
        Just(json!("system")),
        text().prop_map(Json::from),
        Just(json!(3))
    ];
    let message = prop_oneof![
        6 => (role, content()).prop_map(|(role, content)| json!({"role": role, "content": content})),
        1 => content(),
    ];
    prop_oneof![9 => prop::collection::vec(message, 0..4).prop_map(Json::from), 1 => content()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_template_over_any_chat_ends_within_its_fuel(
        source in source(), messages in messages(), tools in prop::option::of(content()), ending in 0..3u8,
    ) {
        let Ok(template) = compile(&source) else { return Ok(()) };
        if let Ok(rendered) = template.render(&messages, tools.as_ref(), ending == 1, ending == 2) {
            // A step writes 64 bytes at most, or what one value prints as.
            prop_assert!(rendered.text().len() as u64 <= FUEL * 64);
        }
    }

    #[test]
    fn no_text_of_a_user_becomes_a_special_token(messages in prop::collection::vec(text(), 1..4)) {
        let template = compile("{% for m in messages %}<s>{{ m.content }}<|end|>{% endfor %}").unwrap();
        let chat: Vec<Json> = messages.iter().map(|text| json!({"role": "user", "content": text})).collect();
        let rendered = template.render(&Json::from(chat), None, false, false).unwrap();
        let whole: String = messages.iter().map(|text| format!("<s>{text}<|end|>")).collect();
        prop_assert_eq!(rendered.text(), whole);
        // Unbroken, they are there as often as the template wrote them.
        for (special, count) in [("<s>", messages.len()), ("<|end|>", messages.len()), ("<|im_start|>", 0)] {
            prop_assert_eq!(rendered.marked().matches(special).count(), count, "{}", special);
        }
    }
}

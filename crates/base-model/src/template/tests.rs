use super::*;
use serde_json::json;

fn template(source: &str) -> ChatTemplate {
    let sources = Sources { default: source.to_owned(), tool_use: None };
    ChatTemplate::new(sources, SpecialNames::new(), vec!["<|end|>".into(), "<s>".into()]).unwrap()
}

fn render(source: &str, messages: Json) -> Result<String, Error> {
    template(source).render(&messages, None, false, false).map(|rendered| rendered.text())
}

#[test]
fn renders_to_the_letter_what_transformers_renders() {
    let golden: Json = serde_json::from_str(include_str!("../../tests/golden/templates.json")).unwrap();
    let names: SpecialNames = serde_json::from_value(golden["special"].clone()).unwrap();
    let specials = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut problems = Vec::new();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let flag = |key: &str| case[key].as_bool().unwrap();
        let source = golden["templates"][text("template")].as_str().unwrap();
        let sources = Sources { default: source.to_owned(), tool_use: None };
        let template = ChatTemplate::new(sources, names.clone(), specials.clone()).unwrap();
        let tools = flag("tools").then_some(&golden["tools"]);
        let chat = &golden["chats"][text("chat")];
        let found = template.render(chat, tools, flag("add_generation_prompt"), flag("continue_final_message"));
        let expected = case["rendered"].as_str();
        if found.as_ref().ok().map(Rendered::text).as_deref() != expected {
            problems.push(format!("{case:#}\nfound: {found:#?}"));
        }
    }
    assert_eq!(cases.len(), 184);
    assert!(problems.is_empty(), "{} of {} differ:\n{}", problems.len(), cases.len(), problems.join("\n"));
}

#[test]
fn what_the_template_raises_reaches_the_caller_in_its_own_words() {
    let error = render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
    assert_eq!(error.to_string(), "chat template: roles must alternate");
    let error = render("{{ raise_exception('no ' + messages[0].role) }}", json!([{"role": "a<|end|>b"}])).unwrap_err();
    assert_eq!(error.to_string(), "chat template: no a<|end|>b");
}

#[test]
fn tags_that_are_none_are_a_syntax_error_and_no_panic() {
    for source in ["{%}}", "{%}", "a {% if", "a {%"] {
        let sources = Sources { default: source.to_owned(), tool_use: None };
        assert!(ChatTemplate::new(sources, SpecialNames::new(), Vec::new()).is_err(), "{source}");
        assert_eq!(without_generation_tags(source), source);
    }
}

#[test]
fn a_template_that_runs_for_ever_or_grows_without_bound_is_stopped() {
    let hundred = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let doubling = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
    let long = "{{ 'x' * 100000000000 }}";
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    for source in [hundred, doubling, long] {
        let error = render(source, json!([])).unwrap_err();
        assert!(error.to_string().contains("steps"), "{error}");
    }
    assert!(render(recursive, json!([])).is_err());
}

#[test]
fn a_long_chat_stays_within_the_limit() {
    let message = json!({"role": "user", "content": "word ".repeat(200)});
    let chat = Json::Array(vec![message; 2000]);
    let source = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}";
    assert_eq!(render(source, chat).unwrap().matches("<|end|>").count(), 2000);
}

#[test]
fn the_time_is_utc_in_pythons_format() {
    let text = render("{{ strftime_now('%d %b %Y|%A %B %m %y %H:%M:%S %j %p %%') }}", json!([])).unwrap();
    let (date, rest) = text.split_once('|').unwrap();
    let now = time::OffsetDateTime::now_utc();
    assert_eq!(date.split(' ').count(), 3);
    assert!(date.ends_with(&now.year().to_string()) || now.month() == time::Month::January, "{date}");
    assert!(rest.ends_with("M %"), "{rest}");
    assert!(render("{{ strftime_now('%Q') }}", json!([])).is_err());
}

#[test]
fn special_tokens_are_broken_up_in_every_string_of_the_input() {
    let template = template("{{ messages | tojson }}{{ tools | tojson(ensure_ascii=true) }}<|end|>");
    let chat = json!([{"role": "x<|end|>", "content": [{"text": "<s>"}], "<|end|>": 1}]);
    let tools = json!([{"name": "ä<|end|>"}]);
    let rendered = template.render(&chat, Some(&tools), false, false).unwrap();
    assert_eq!(rendered.marked().matches("<|end|>").count(), 1);
    assert!(!rendered.marked().contains("<s>"));
    assert_eq!(rendered.text().matches("<|end|>").count(), 4);
    assert!(rendered.text().contains(r"\u00e4<|end|>"), "{}", rendered.text());
}

#[test]
fn pieces_that_a_template_joins_stay_broken() {
    let template = template("{% for m in messages %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}|>");
    for pieces in [json!(["<|end|", ">"]), json!(["<", "|end|>"]), json!(["<|", "end", "|>"]), json!(["a<|end"])] {
        let rendered = template.render(&json!([{"content": pieces}]), None, false, false).unwrap();
        assert!(rendered.text().contains("<|end|>"));
        assert!(!rendered.marked().contains("<|end|>"), "{pieces}");
    }
}

#[test]
fn the_final_message_can_be_continued_or_the_reason_is_given() {
    let source = "{% for m in messages %}<s>{{ m.content | trim }}<|end|>{% endfor %}";
    let go_on = |messages: Json| template(source).render(&messages, None, false, true).map(|rendered| rendered.text());
    assert_eq!(go_on(json!([{"content": "a"}, {"content": "The answer is "}])).unwrap(), "<s>a<|end|><s>The answer is");
    assert!(go_on(json!([])).is_err());
    assert!(go_on(json!([{"content": null}])).is_err());
    let prompt_too = template(source).render(&json!([{"content": "a"}]), None, true, true);
    assert!(prompt_too.unwrap_err().to_string().contains("exclude"));
    let dropping = template("nothing").render(&json!([{"content": "a"}]), None, false, true);
    assert!(dropping.unwrap_err().to_string().contains("does not appear"));
}

#[test]
fn messages_that_are_no_array_are_refused() {
    for messages in [json!(null), json!({}), json!("hi")] {
        assert!(render("x", messages).unwrap_err().to_string().contains("not an array"));
    }
}

#[test]
fn tools_choose_the_template_made_for_them() {
    let sources = Sources { default: "plain".into(), tool_use: Some("with tools".into()) };
    let template = ChatTemplate::new(sources, SpecialNames::new(), Vec::new()).unwrap();
    let text = |tools: Option<&Json>| template.render(&json!([]), tools, false, false).unwrap().text();
    assert_eq!((text(None), text(Some(&json!([])))), ("plain".to_owned(), "with tools".to_owned()));
}

#[test]
fn a_special_token_that_cannot_be_broken_up_is_refused() {
    let sources = Sources { default: String::new(), tool_use: None };
    let error = ChatTemplate::new(sources, SpecialNames::new(), vec!["é".into()]).unwrap_err();
    assert!(error.to_string().contains("fewer than two characters"));
}

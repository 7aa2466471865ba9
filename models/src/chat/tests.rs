use super::*;
use std::time::{Duration, Instant};

fn talk() -> Vec<Message> {
    vec![
        Message::new("system", "Be kind."),
        Message::new("user", "Hi <b>"),
        Message::new("assistant", "Hello!"),
        Message::new("user", "Bye"),
    ]
}

fn render(source: &str) -> Result<String, ChatError> {
    ChatTemplate::new(source)?.render_with(&talk(), "<s>", "</s>", true)
}

/// The template that SmolLM2's file carries.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Llama 3's.
const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// In the manner of Qwen 2.5 and 3: tools, namespaces, slices, Python's methods.
const QWEN: &str = "{%- if tools %}
    {{- '<|im_start|>system\\n' + tools | tojson }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not(message.content.startswith('<tool>')) and ns.last == messages|length - 1 %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
";

const CHATML: &str = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn real_templates_give_their_prompts() {
    assert_eq!(render(SMOLLM2).unwrap(), CHATML);
    assert_eq!(render(QWEN).unwrap(), CHATML);
    let t = ChatTemplate::new(SMOLLM2).unwrap();
    let short = t.render_with(&[Message::new("user", "Hi")], "", "", false).unwrap();
    assert_eq!(
        short,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    );
    let llama3 = "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi <b><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(render(LLAMA3).unwrap(), llama3);
    assert_eq!(
        ChatTemplate::builtin("llama3").unwrap().render_with(&talk(), "<s>", "</s>", true).unwrap(),
        llama3
    );
}

#[test]
fn built_in_templates_work() {
    let all =
        |name: &str| ChatTemplate::builtin(name).unwrap().render_with(&talk(), "<s>", "</s>", true).unwrap();
    assert_eq!(all("chatml"), CHATML);
    assert_eq!(
        all("llama2"),
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi <b> [/INST] Hello! </s><s>[INST] Bye [/INST]"
    );
    assert_eq!(all("mistral"), "<s>[INST] Be kind.\n\nHi <b> [/INST] Hello!</s>[INST] Bye [/INST]");
    assert_eq!(
        all("gemma"),
        "<s><start_of_turn>user\nBe kind.\n\nHi <b><end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(
        all("zephyr"),
        "<|system|>\nBe kind.</s>\n<|user|>\nHi <b></s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n<|assistant|>\n"
    );
    assert_eq!(all("vicuna"), "Be kind.\n\nUSER: Hi <b>\nASSISTANT: Hello!</s>\nUSER: Bye\nASSISTANT:");
    for name in ChatTemplate::names() {
        assert!(all(name).contains("Hi <b>"), "{name}");
    }
    let error = ChatTemplate::builtin("nope").unwrap_err().to_string();
    assert!(error.contains("'nope'") && error.contains("chatml"), "{error}");
}

#[test]
fn values_are_written_as_python_does() {
    assert_eq!(
        render("{{ none }} {{ true }} {{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ 'ab' * 2 }}").unwrap(),
        "None True 7 3 abab"
    );
    assert_eq!(render("{{ {'a': [1, none, 'é<\"']} | tojson }}").unwrap(), r#"{"a": [1, null, "é<\""]}"#);
    assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}").unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    assert_eq!(
        render("{{ ['b', 'a'] | sort | join(', ') }}{{ 'a-b'.replace('-', '+').upper() }}").unwrap(),
        "a, bA+B"
    );
    assert_eq!(
        render("{{ (['x'] + messages)|length }}{{ 'x' in ['x'] }}{{ 'z' not in 'abc' }}").unwrap(),
        "5TrueTrue"
    );
    assert_eq!(
        render("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join('|') }}")
            .unwrap(),
        "Hi <b>|Bye"
    );
    assert_eq!(
        render(
            "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
        )
        .unwrap(),
        "systemuser"
    );
    assert_eq!(render("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f(1) }}").unwrap(), "[a][1]");
    assert_eq!(render("{{ '{}-{:>3}'.format('a', 'b') }}").unwrap(), "a-  b");
    assert_eq!(
        render("{{ '{{}} 2024 [{}] {:\u{e9}>3} {:}^3}'.format('a', 'b', 'c') }}").unwrap(),
        "{} 2024 [a] \u{e9}\u{e9}b }c}"
    );
    assert_eq!(
        render("{{ messages[-1].content[1:] }}{{ 'abc'[1] }}{{ [1, 2, 3][::-1] }}").unwrap(),
        "yeb[3, 2, 1]"
    );
    assert_eq!(
        render("{{ messages[9] is defined }}{{ 3 * 4 }}{{ 3 * 'ab' }}{{ 'a' < 'b' }}").unwrap(),
        "False12abababTrue"
    );
    assert_eq!(render("{{ tools is iterable }}{{ [] is iterable }}").unwrap(), "FalseTrue");
    assert_eq!(render("a {%- generation -%} b {%- endgeneration %}c").unwrap(), "abc");
    assert_eq!(render("{{ strftime_now('%Y')|length }}").unwrap(), "4");
}

#[test]
fn a_template_can_refuse() {
    let error = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
    assert_eq!(error.to_string(), "chat template: Roles must alternate (line 1)");
    assert!(matches!(ChatTemplate::new("{% if %}"), Err(ChatError::BadTemplate(_))));
}

#[test]
fn long_conversations_stay_within_the_limits() {
    let many: Vec<Message> =
        (0..4000).map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, "ok")).collect();
    let large =
        [Message::new("system", "s".repeat(100_000)), Message::new("user", "long ".repeat(1_000_000))];
    for source in [SMOLLM2, LLAMA3, QWEN] {
        let template = ChatTemplate::new(source).unwrap();
        assert!(template.render_with(&many, "", "", true).unwrap().len() > 80_000);
        assert!(template.render_with(&large, "", "", true).unwrap().len() > 5_000_000);
    }
}

#[test]
fn hostile_templates_fail_fast() {
    let long = format!("{{{{ {} }}}}", "a ~ ".repeat(20_000) + "a");
    let product = "{{ 'a' * 100000000 }}".repeat(1000);
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(900), ")".repeat(900));
    let ifs = "{% if true %}".repeat(10_000);
    let literal = format!(
        "{{% for a in range(99999) %}}{{% set x %}}{}{{% endset %}}{{% endfor %}}",
        "z".repeat(200_000)
    );
    let captures = format!(
        "{{% set x %}}{{% for a in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
        "z".repeat(200_000)
    );
    let cases = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x=['a']) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}",
        "{% set ns = namespace(x={}) %}{% for a in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=['a']) %}{% for a in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for a in range(20000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set n = 999999999 %}{{ 'abc' * n }}",
        "{% set n = 99999999 %}{% for a in range(99) %}{{ [1] * n }}{% endfor %}",
        "{{ 'a' * 99999999 * 9 }}",
        "{% set n = 9999999 %}{% set x = 'a' * n %}{{ x|replace('a', x) }}",
        "{% set n = 9999999 %}{% set x = 'a' * n %}{{ x.replace('a', x) }}",
        "{% set n = 9999 %}{% set x = 'a' * n %}{{ (x|list)|join(x * n) }}",
        "{% set n = 99999 %}{% set x = 'a\\n' * n %}{{ x|indent(999999) }}",
        "{{ 'a'|indent(width=4294967295) }}",
        "{{ '{:>99999999999}'.format('x') }}",
        "{{ '{:{}}'.format('x', 999999999) }}",
        "{{ '{a[\u{e9}]}'.format('x') }}",
        "{{ '{a[}\u{e9}]}'.format(a={}) }}",
        "{{ '{a[}]:>99999999}'.format(a={'}': 1}) }}",
        "{{ '{:}>99999999}'.format('x') }}",
        "{{ '{{{:>99999999}'.format('x') }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(60) %}{% set ns.x = f(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% include 'chat_template' %}",
        "{% set n = 9999999 %}{% set x = 'a' * n %}{% for a in range(99999) %}{{ x[n - 1] }}{% endfor %}",
        "{% set n = 9999999 %}{% set x = ' ' * n %}{% for a in range(99999) %}{{ x|trim }}{% endfor %}",
        "{% set n = 9999999 %}{% set x = ' ' * n %}{% for a in range(99999) %}{{ x.strip() }}{% endfor %}",
        "{% set n = 9999999 %}{% set x = ' ' * n %}{% for a in range(99999) %}{{ x|length }}{% endfor %}",
        "{% set n = 9999999 %}{% set x = ' ' * n %}{% for a in range(99999) %}{{ 'b' in x }}{% endfor %}",
        "{% set n = 99999 %}{% set x = [1] * n %}{% for a in range(99999) %}{% set y = x[1:] %}{% endfor %}",
        &long,
        &product,
        &parens,
        &ifs,
        &literal,
        &captures,
    ];
    for source in cases {
        let start = Instant::now();
        let result = render(source);
        let shown: String = source.chars().take(100).collect();
        assert!(result.is_err(), "{shown}: {} bytes", result.map_or(0, |text| text.len()));
        assert!(start.elapsed() < Duration::from_secs(5), "{shown}: {:?}", start.elapsed());
    }
}

/// Literal text pays like any other, wherever the compiler puts it.
#[test]
fn literal_text_is_metered_and_stays_in_its_place() {
    assert_eq!(
        render("a{% if true %}b{% else %}c{% endif %}d{% macro f() %}[e]{% endmacro %}{{ f() }}f").unwrap(),
        "abd[e]f"
    );
    assert_eq!(render("{% block b %}x{% for i in [1, 2] %}y{% endfor %}{% endblock %}z").unwrap(), "xyyz");
    assert_eq!(render("{% set t %}a{% endset %}{{ t }}{{ t }}").unwrap(), "aa");
    // 2,000 bytes of text that would be 100 MB.
    let line = "z".repeat(2000);
    for source in [
        format!("{{% for a in range(50000) %}}{line}{{% endfor %}}"),
        format!("{{% set x %}}{{% for a in range(50000) %}}{line}{{% endfor %}}{{% endset %}}"),
        format!(
            "{{% macro f() %}}{line}{{% endmacro %}}{{% for a in range(50000) %}}{{% set x = f() %}}{{% endfor %}}"
        ),
    ] {
        let error = render(&source).unwrap_err().to_string();
        assert!(error.contains("too much text") && error.contains("(line 1)"), "{error}");
    }
}

#[test]
fn slices_are_pythons() {
    for (slice, expected) in [
        ("[1, 2, 3][::-1]", "[3, 2, 1]"),
        ("[1, 2, 3][:0:-1]", "[3, 2]"),
        ("[1, 2, 3][:7:-1]", "[]"),
        ("[1, 2, 3][-2:]", "[2, 3]"),
        ("[1, 2, 3][9:-9:-2]", "[3, 1]"),
        ("[1, 2, 3][::9223372036854775807]", "[1]"),
        ("[1, 2, 3][::-9223372036854775807]", "[3]"),
        ("[][::-1]", "[]"),
        ("''[::-1]", ""),
        ("'h\u{e9}llo'[1:-1]", "\u{e9}ll"),
        ("'h\u{e9}llo'[::-2]", "olh"),
        ("nothing[1:]", "[]"),
    ] {
        assert_eq!(render(&format!("{{{{ {slice} }}}}")).unwrap(), expected, "{slice}");
    }
    for slice in ["[1][::0]", "1[1:]", "{}[1:]"] {
        assert!(render(&format!("{{{{ {slice} }}}}")).is_err(), "{slice}");
    }
}

/// Values that are made only when walked would refer to each other, one in another.
#[test]
fn no_chain_of_values_overflows_the_stack() {
    for step in [
        "ns.x[0:]",
        "ns.x|reverse",
        "ns.x|map('string')",
        "ns.x|chain([])",
        "ns.x|zip",
        "ns.x|zip([1])",
        "ns.x + []",
        "ns.x|select",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1, 2]) %}}{{% for a in range(20000) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x }}}}"
        );
        // That it comes back is the point.
        let _ = render(&source);
    }
    // Namespaces take any value, other namespaces too.
    let error = render(
        "{% set o = namespace(v=1) %}{% for a in range(20000) %}{% set n = namespace() %}{% set n.v = o.v %}{% set o.v = n %}\
         {% endfor %}{{ o.v }}",
    );
    assert!(error.unwrap_err().to_string().contains("too deep"));
    let error = render(
        "{% set o = namespace(v=1) %}{% for a in range(5000) %}{% set p = o.v %}{% macro m() %}{{ p }}{% endmacro %}\
         {% set o.v = m %}{% endfor %}",
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("macro"), "{error}");
    for nested in ["ns.x|zip", "[1]|zip(ns.x)", "ns.x|map('zip')"] {
        let error = render(&format!(
            "{{% set ns = namespace(x=[[1], [2]]) %}}{{% for a in range(100) %}}{{% set ns.x = {nested} %}}{{% endfor %}}{{{{ 1 }}}}"
        ));
        assert!(error.unwrap_err().to_string().contains("too deep"), "{nested}");
    }
}

use std::sync::Arc;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;

use super::*;

/// A template in the manner of the Qwen 2.5 family.
const QWEN25_LIKE: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- message.content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

/// A template in the manner of the Qwen 3 family.
const QWEN3_LIKE: &str = r#"{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content + '<|im_end|>\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

/// A byte-level tokenizer without merges whose post-processor puts `<s>` first, as Llama's does.
fn tokenizer_json() -> Vec<u8> {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let texts = bytes.iter().map(char::to_string).chain(["<|im_end|>".to_owned()]);
    let vocabulary: std::collections::HashMap<String, u32> = texts.zip(0..).collect();
    let model = BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), vec![]);
    let mut tokenizer = Tokenizer::new(model.build().unwrap());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_special_tokens(&[AddedToken::from("<s>", true), AddedToken::from("<|im_start|>", true)]);
    let first = TemplateProcessing::builder().try_single("<s> $A").unwrap().special_tokens(vec![("<s>", 257)]).build();
    tokenizer.with_post_processor(Some(first.unwrap()));
    tokenizer.to_string(false).unwrap().into_bytes()
}

fn chat(template: &str) -> ChatTokenizer {
    let config = br#"{"eos_token": "<|im_end|>", "bos_token": "<s>", "chat_template": "from the configuration"}"#;
    ChatTokenizer::from_files(&tokenizer_json(), config, Some(template.as_bytes())).unwrap()
}

#[test]
fn a_qwen25_like_template_renders() {
    let system = ThinkingMode::Instructed.system_prompt();
    let text = chat(QWEN25_LIKE).render(&[Message::new("user", "Why?")], ThinkingMode::Instructed).unwrap();
    assert_eq!(
        text,
        format!("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    );
}

#[test]
fn a_qwen3_like_template_renders() {
    let messages = [
        Message::new("system", "S"),
        Message::new("user", "Q"),
        Message::new("assistant", "<think>\nhm\n</think>\n\nA"),
        Message::new("user", "R"),
    ];
    let text = chat(QWEN3_LIKE).render(&messages, ThinkingMode::Native).unwrap();
    let want = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
                <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text, want);
    let text = chat(QWEN3_LIKE).render(&messages[..3], ThinkingMode::Native).unwrap();
    assert!(text.contains("<|im_start|>assistant\n<think>\nhm\n</think>\n\nA<|im_end|>\n"), "{text}");
}

#[test]
fn a_system_message_is_only_added_where_none_stands_first() {
    let chat = chat("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}");
    let own = chat.render(&[Message::new("system", "S"), Message::new("user", "U")], ThinkingMode::Native).unwrap();
    assert_eq!(own, "system:S;user:U;");
    let added = chat.render(&[Message::new("user", "U")], ThinkingMode::Native).unwrap();
    assert_eq!(added, format!("system:{};user:U;", ThinkingMode::Native.system_prompt()));
}

#[test]
fn default_special_tokens_are_added_and_kept() {
    let chat = chat("{{ messages[-1].content }}<|im_end|>");
    let ids = chat.prompt_ids("é", ThinkingMode::Native).unwrap();
    // The post-processor's first token, two bytes, and the end-of-turn token whole though no added token declares it.
    assert_eq!((ids.len(), ids[0], ids[3]), (4, 257, chat.eos_token_id()));
    assert_eq!(chat.decode(&ids).unwrap(), "<s>é<|im_end|>");
    assert_eq!(chat.decode(&[4_000_000_000, ids[3]]).unwrap(), "<|im_end|>");
    assert_eq!((chat.eos_token(), chat.eos_token_id()), ("<|im_end|>", 256));
    assert_eq!(chat.vocab_size(), 259);
}

#[test]
fn a_template_file_wins_over_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    put("tokenizer.json", &tokenizer_json());
    put("tokenizer_config.json", br#"{"eos_token": {"content": "<|im_end|>"}, "chat_template": "key"}"#);
    let rendered = || ChatTokenizer::open(folder.path()).unwrap().render(&[], ThinkingMode::Native).unwrap();
    assert_eq!(rendered(), "key");
    put("chat_template.jinja", b"file");
    assert_eq!(rendered(), "file");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(ChatTokenizer::open(folder.path()).unwrap_err().to_string().contains("tokenizer.json cannot be read"));
}

#[test]
fn unusable_checkpoints_say_why() {
    let open =
        |tokenizer: &[u8], config: &str| ChatTokenizer::from_files(tokenizer, config.as_bytes(), None).unwrap_err().to_string();
    let good = tokenizer_json();
    assert!(open(b"{}", r#"{"eos_token": "<|im_end|>"}"#).contains("tokenizer.json is unusable"));
    assert!(open(&good, r#"{"eos_token": "<|im_end|>"}"#).contains("no chat_template"));
    assert!(open(&good, r#"{"chat_template": "x"}"#).contains("no eos_token"));
    assert!(open(&good, r#"{"chat_template": "x", "eos_token": "<no>"}"#).contains("`<no>` is not in the vocabulary"));
    assert!(open(&good, r#"{"chat_template": "{% if %}", "eos_token": "<|im_end|>"}"#).contains("chat template is unusable"));
}

#[test]
fn spaces_are_cleaned_up_only_on_request() {
    assert_eq!(clean_up_spaces("It 's , n't ' x ' y ?"), "It's,n't'x'y?");
    let config = |flag: &str| format!(r#"{{"eos_token": "<|im_end|>", "chat_template": "x"{flag}}}"#);
    let decoded = |flag: &str| {
        let chat = ChatTokenizer::from_files(&tokenizer_json(), config(flag).as_bytes(), None).unwrap();
        chat.decode(&chat.encode("a ,").unwrap()).unwrap()
    };
    assert_eq!(decoded(""), "<s>a ,");
    assert_eq!(decoded(r#", "clean_up_tokenization_spaces": true"#), "<s>a,");
}

#[test]
fn a_tokenizer_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &Arc<T>) {}
    shared(&Arc::new(chat("x")));
}

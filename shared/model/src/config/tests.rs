use super::*;
use serde_json::{Map, json};

use crate::fixtures;

fn read_document(document: Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), Value::Object(document).to_string()).unwrap();
    ModelConfig::read(directory.path())
}

fn read_with(architecture: Architecture, fields: Value) -> Result<ModelConfig, ConfigError> {
    let mut document = fixtures::family(architecture);
    document.extend(fields.as_object().unwrap().clone());
    read_document(document)
}

fn read_bare(fields: Value) -> Result<ModelConfig, ConfigError> {
    read_document(fields.as_object().unwrap().clone())
}

#[test]
fn reads_what_the_reference_writes() {
    let config = read_document(fixtures::config()).unwrap();
    assert_eq!((config.vocab_size, config.head_dim, config.pad_token_id), (96, 8, 2));
    assert_eq!(config.eos_token_ids, [2]);
    assert_eq!((config.attention_bias, config.output_bias, config.mlp_bias), (true, false, false));
    assert_eq!(config.windows, [None, None]);

    let config = read_document(fixtures::family(Architecture::Qwen3)).unwrap();
    assert_eq!((config.head_dim, config.attention_bias, config.output_bias), (12, true, true));
    assert_eq!(config.windows, [None, Some(5)]);

    let config = read_document(fixtures::family(Architecture::Llama)).unwrap();
    assert_eq!((config.head_dim, config.attention_bias, config.output_bias, config.mlp_bias), (6, true, true, true));
    let scaling =
        RotaryScaling::Llama3 { factor: 8.0, low_frequency_factor: 1.0, high_frequency_factor: 4.0, original_positions: 32.0 };
    assert_eq!(config.rotary, Rotary { theta: 10_000.0, scaling });
}

#[test]
fn absent_fields_have_the_defaults_of_the_familys_class() {
    let sizes = |config: &ModelConfig| {
        let heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        (config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads)
    };
    let rest = |config: &ModelConfig| {
        let flags = (config.attention_bias, config.mlp_bias, config.tie_word_embeddings);
        (config.max_position_embeddings, config.rms_norm_eps, config.rotary.theta, flags, config.eos_token_ids.clone())
    };
    let config = read_bare(json!({"model_type": "qwen2"})).unwrap();
    assert_eq!(sizes(&config), (151_936, 4096, 22_016, 32, (32, 32, 128)));
    assert_eq!(rest(&config), (32_768, 1e-6, 1e4, (true, false, false), vec![]));
    let config = read_bare(json!({"model_type": "qwen3", "hidden_size": 2048})).unwrap();
    assert_eq!(sizes(&config), (151_936, 2048, 22_016, 32, (32, 32, 128)));
    assert_eq!(rest(&config), (32_768, 1e-6, 1e4, (false, false, false), vec![]));
    let config = read_bare(json!({"model_type": "llama", "num_attention_heads": 16})).unwrap();
    assert_eq!(sizes(&config), (32_000, 4096, 11_008, 32, (16, 16, 256)));
    assert_eq!(rest(&config), (2_048, 1e-6, 1e4, (false, false, false), vec![2]));

    let sliding = read_bare(json!({"model_type": "qwen2", "use_sliding_window": true})).unwrap();
    assert!(sliding.windows[..28].iter().all(Option::is_none) && sliding.windows[28..] == [Some(4096); 4]);
    // A null is no absence: here it means as many as query heads.
    let config = read_bare(json!({"model_type": "qwen2", "num_attention_heads": 8, "num_key_value_heads": null})).unwrap();
    assert_eq!(config.num_key_value_heads, 8);
}

#[test]
fn other_families_are_refused_by_name() {
    let families = ["mistral", "gemma3", "qwen2_moe", "qwen3_moe", "qwen2_vl", "phi3", "llama4", "gpt2", "deepseek_v3", "QWEN2"];
    for family in families {
        let mut document = fixtures::config();
        document.insert("model_type".into(), json!(family));
        let error = read_document(document).unwrap_err().to_string();
        assert!(error.contains(&format!("model_type = \"{family}\"")) && error.contains("qwen2, qwen3 and llama"), "{error}");
    }
    assert!(read_bare(json!({})).unwrap_err().to_string().contains("model_type = null"));
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    use Architecture::{Llama, Qwen2, Qwen3};
    let everywhere = [
        ("hidden_act", json!("gelu")),
        ("hidden_act", json!(null)),
        ("quantization_config", json!({"bits": 4})),
        ("partial_rotary_factor", json!(0.5)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(7)),
        ("head_dim", json!("64")),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(null)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(null)),
        ("hidden_size", json!(32.5)),
        ("num_hidden_layers", json!(100_000)),
        ("max_position_embeddings", json!(-1)),
        ("tie_word_embeddings", json!("yes")),
        ("eos_token_id", json!("</s>")),
        ("rope_theta", json!(-1.0)),
        ("rope_scaling", json!("linear")),
        ("rope_scaling", json!({})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})),
        ("rope_scaling", json!({"type": "linear", "rope_type": "default", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "default", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "default", "mrope_section": [16, 24, 24]})),
        ("rope_scaling", json!({"rope_type": "linear"})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0})),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}),
        ),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5})),
        ("rope_parameters", json!({"rope_type": "linear", "factor": 3.0})),
        ("auto_map", json!({"AutoModelForCausalLM": "modeling.Own"})),
        ("logit_scale", json!(0.25)),
    ];
    let everywhere = everywhere
        .into_iter()
        .flat_map(|(field, value)| [Qwen2, Qwen3, Llama].map(|architecture| (architecture, field, value.clone())));
    let of_one = [
        (Qwen2, "attention_bias", json!(true)),
        (Qwen2, "mlp_bias", json!(true)),
        (Qwen2, "head_dim", json!(null)),
        (Qwen2, "use_sliding_window", json!(1)),
        (Qwen2, "layer_types", json!(["full_attention", "sliding_attention"])),
        (Qwen3, "attention_bias", json!("no")),
        (Qwen3, "mlp_bias", json!(true)),
        (Qwen3, "head_dim", json!(null)),
        (Qwen3, "sliding_window", json!(0)),
        (Qwen3, "max_window_layers", json!(null)),
        (Qwen3, "layer_types", json!(["full_attention"])),
        (Qwen3, "layer_types", json!(["full_attention", "chunked_attention"])),
        (Qwen3, "layer_types", json!("full_attention")),
        (Llama, "use_sliding_window", json!(true)),
        (Llama, "sliding_window", json!(4096)),
        (Llama, "layer_types", json!(["sliding_attention", "full_attention"])),
        (Llama, "mlp_bias", json!(2)),
    ];
    for (architecture, field, value) in everywhere.chain(of_one) {
        let mut document = fixtures::family(architecture);
        if field == "rope_parameters" {
            // Alone it would be followed; here it contradicts the older spelling.
            document.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": 2.0}));
        }
        document.insert(field.into(), value.clone());
        let error = match read_document(document) {
            Ok(_) => panic!("{architecture:?} {field} = {value} is accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(&format!("config.json: {field} = ")), "{architecture:?} {field} = {value}: {error}");
    }
}

#[test]
fn both_spellings_of_the_rotary_embedding_are_read_and_what_is_off_is_ignored() {
    let plain = Rotary { theta: 5e5, scaling: RotaryScaling::Unscaled };
    let linear = Rotary { theta: 5e5, scaling: RotaryScaling::Linear { factor: 4.0 } };
    let cases = [
        (json!({"rope_theta": 500_000}), plain),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}), plain),
        (json!({"rope_parameters": {"rope_theta": 5e5}, "use_mrope": false}), plain),
        (json!({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}), plain),
        (json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}), linear),
        (json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}), linear),
        (
            json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}),
            linear,
        ),
    ];
    for (fields, want) in cases {
        let mut document = fields.as_object().unwrap().clone();
        document.insert("model_type".into(), json!("llama"));
        assert_eq!(read_document(document).unwrap().rotary, want, "{fields}");
    }
}

#[test]
fn layers_slide_as_the_reference_says() {
    let windows = |fields| read_with(Architecture::Qwen2, fields).unwrap().windows;
    let on = |more: Value| {
        let mut fields = json!({"use_sliding_window": true, "sliding_window": 9});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        windows(fields)
    };
    assert_eq!(windows(json!({"sliding_window": 9, "max_window_layers": 0})), [None, None]);
    assert_eq!(on(json!({})), [None, None]);
    assert_eq!(on(json!({"max_window_layers": 1})), [None, Some(9)]);
    assert_eq!(on(json!({"max_window_layers": 0})), [Some(9), Some(9)]);
    assert_eq!(on(json!({"layer_types": ["sliding_attention", "full_attention"]})), [Some(9), None]);
    assert_eq!(on(json!({"sliding_window": null, "max_window_layers": 0})), [None, None]);
}

#[test]
fn special_ids_are_one_or_many_and_within_the_vocabulary() {
    let config = read_with(Architecture::Qwen2, json!({"eos_token_id": [7, 2, 96, -1]})).unwrap();
    assert_eq!((config.eos_token_ids, config.pad_token_id), (vec![7, 2], 7));
    let config = read_with(Architecture::Llama, json!({"eos_token_id": null, "pad_token_id": 5})).unwrap();
    assert_eq!((config.eos_token_ids, config.pad_token_id), (vec![], 5));
}

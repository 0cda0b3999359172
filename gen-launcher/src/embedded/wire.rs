//! SGLang's JSON of `/generate`, read strictly and written as SGLang writes it.

use grail_model::generation::{FinishReason, Finished, Request, Sampling};
use serde_json::{Map, Value, json};

/// Prompts of one HTTP request, at most.
const MAX_BATCH: usize = 4096;

/// Sampling parameters that only concern text, of which this engine makes none.
const TEXT_ONLY: [&str; 3] = ["skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"];

/// One HTTP request of `/generate`.
#[derive(Debug)]
pub struct Generate {
    /// One request per prompt.
    pub requests: Vec<Request>,
    /// Names given by the client, one per prompt, or none.
    pub rids: Vec<Option<String>>,
    /// Whether the answer is an array.
    pub batch: bool,
}

/// Why a body is refused; both are HTTP 400, in SGLang's two forms.
#[derive(Debug, PartialEq, Eq)]
pub enum BadBody {
    /// `{"error": {"message": …}}`: a value is missing, of the wrong type or out of range.
    Value(String),
    /// `{"error": "…"}`: a sampling parameter is unknown.
    Unknown(String),
}

impl BadBody {
    /// The body of the answer.
    pub fn body(&self) -> Value {
        match self {
            Self::Value(message) => json!({"error": {"message": message}}),
            Self::Unknown(message) => json!({"error": message}),
        }
    }
}

fn bad(message: impl Into<String>) -> BadBody {
    BadBody::Value(message.into())
}

impl Generate {
    /// Reads a body. Unknown top-level keys are ignored, as SGLang does.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(body: &Value) -> Result<Self, BadBody> {
        let body = body.as_object().ok_or_else(|| bad("the body must be an object"))?;
        if body.get("stream").is_some_and(|stream| stream != &Value::Bool(false) && !stream.is_null()) {
            return Err(bad("stream is not supported by the embedded engine"));
        }
        let ids = body.get("input_ids").filter(|ids| !ids.is_null());
        let ids = ids.ok_or_else(|| bad("input_ids is required; the embedded engine has no tokenizer for text"))?;
        let ids = ids.as_array().ok_or_else(|| bad("input_ids must be a list of ids or a list of such lists"))?;
        let batch = ids.first().is_some_and(Value::is_array);
        let prompts: Vec<Vec<u32>> =
            if batch { ids.iter().map(prompt).collect::<Result<_, _>>()? } else { vec![prompt_of(ids)?] };
        if prompts.len() > MAX_BATCH {
            return Err(bad(format!("input_ids holds {} prompts, at most {MAX_BATCH} are taken at once", prompts.len())));
        }
        let samplings = samplings(body.get("sampling_params"), prompts.len())?;
        let rids = rids(body.get("rid"), prompts.len())?;
        let requests = prompts.into_iter().zip(samplings).map(|(prompt, sampling)| Request { prompt, sampling }).collect();
        Ok(Self { requests, rids, batch })
    }
}

fn prompt(ids: &Value) -> Result<Vec<u32>, BadBody> {
    prompt_of(ids.as_array().ok_or_else(|| bad("input_ids must be a list of ids or a list of such lists"))?)
}

fn prompt_of(ids: &[Value]) -> Result<Vec<u32>, BadBody> {
    if ids.is_empty() {
        return Err(bad("input_ids is empty; at least one id is needed"));
    }
    ids.iter().map(|id| token(id).ok_or_else(|| bad(format!("input_ids holds {id}, which is no token id")))).collect()
}

fn token(id: &Value) -> Option<u32> {
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn rids(rid: Option<&Value>, count: usize) -> Result<Vec<Option<String>>, BadBody> {
    match rid {
        None | Some(Value::Null) => Ok(vec![None; count]),
        Some(Value::String(rid)) if count == 1 => Ok(vec![Some(rid.clone())]),
        Some(Value::Array(rids)) if rids.len() == count && rids.iter().all(Value::is_string) => {
            Ok(rids.iter().map(|rid| rid.as_str().map(str::to_owned)).collect())
        }
        Some(_) => Err(bad(format!("rid must be a string, or a list of {count} strings"))),
    }
}

fn samplings(params: Option<&Value>, count: usize) -> Result<Vec<Sampling>, BadBody> {
    match params {
        None | Some(Value::Null) => Ok(vec![Sampling::default(); count]),
        Some(Value::Object(one)) => Ok(vec![sampling(one)?; count]),
        Some(Value::Array(many)) if many.len() == count => {
            many.iter().map(|one| sampling(one.as_object().ok_or_else(|| bad("sampling_params must hold objects"))?)).collect()
        }
        Some(_) => Err(bad(format!("sampling_params must be an object, or a list of {count} objects"))),
    }
}

fn sampling(params: &Map<String, Value>) -> Result<Sampling, BadBody> {
    let mut sampling = Sampling::default();
    for (key, value) in params.iter().filter(|(_, value)| !value.is_null()) {
        let wrong = |want: &str| bad(format!("sampling_params.{key} = {value}: want {want}"));
        let number = || value.as_f64().ok_or_else(|| wrong("a number"));
        match key.as_str() {
            "max_new_tokens" => {
                let count = value.as_u64().ok_or_else(|| wrong("an integer of at least 0"))?;
                sampling.max_new_tokens = Some(usize::try_from(count).map_err(|_| wrong("a smaller integer"))?);
            }
            "temperature" => sampling.temperature = number()?,
            "top_p" => sampling.top_p = number()?,
            "top_k" => sampling.top_k = top_k(value).ok_or_else(|| wrong("-1 (all) or an integer of at least 1"))?,
            "repetition_penalty" => sampling.repetition_penalty = number()?,
            "stop_token_ids" => {
                let ids = value.as_array().and_then(|ids| ids.iter().map(token).collect::<Option<Vec<u32>>>());
                sampling.stop_token_ids = ids.ok_or_else(|| wrong("a list of token ids"))?;
            }
            "ignore_eos" => sampling.ignore_eos = value.as_bool().ok_or_else(|| wrong("true or false"))?,
            "sampling_seed" => sampling.seed = Some(value.as_u64().ok_or_else(|| wrong("an integer of at least 0"))?),
            "n" if value == &json!(1) => {}
            known if TEXT_ONLY.contains(&known) => {}
            unknown => {
                return Err(BadBody::Unknown(format!("Unexpected keyword argument '{unknown}' in sampling_params")));
            }
        }
    }
    Ok(sampling)
}

fn top_k(value: &Value) -> Option<Option<usize>> {
    match value.as_i64()? {
        -1 => Some(None),
        k if k >= 1 => usize::try_from(k).ok().map(Some),
        _ => None,
    }
}

/// One completion as SGLang writes it. `weight_version` is the server's at the time of the answer.
pub fn completion(id: &str, prompt_tokens: usize, finished: &Finished, weight_version: &str, seconds: f64) -> Value {
    let count = finished.output.len();
    let reason = match &finished.reason {
        FinishReason::Stop { matched } => json!({"type": "stop", "matched": matched}),
        FinishReason::Length => json!({"type": "length", "length": count}),
        FinishReason::Abort { message } => json!({"type": "abort", "message": message}),
    };
    let span =
        |span: &grail_model::generation::VersionSpan| json!({"version": &*span.version, "start": span.start, "end": span.end});
    let versions: Vec<Value> = finished.versions.iter().map(span).collect();
    json!({
        "text": "",
        "output_ids": finished.output,
        "meta_info": {
            "id": id,
            "finish_reason": reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "cached_tokens": 0,
            "weight_version": finished.versions.last().map_or(weight_version, |span| &*span.version),
            "weight_versions": versions,
            "e2e_latency": seconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_miners_request() {
        let body = json!({
            "input_ids": [5, 6, 7],
            "sampling_params":
                {"max_new_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "sampling_seed": 3},
            "return_token_ids": true,
        });
        let generate = Generate::read(&body).unwrap();
        let Sampling { max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, .. } = &generate.requests[0].sampling;
        assert_eq!((*max_new_tokens, *temperature, *top_p, *top_k), (Some(9), 0.7, 0.9, Some(50)));
        assert_eq!((*repetition_penalty, *seed, generate.batch), (1.1, Some(3), false));
    }

    #[test]
    fn a_batch_keeps_its_order_and_may_have_parameters_of_its_own() {
        let body = json!({"input_ids": [[1], [2, 3]], "sampling_params": [{"top_k": -1}, {"top_k": 4}], "rid": ["a", "b"]});
        let generate = Generate::read(&body).unwrap();
        assert_eq!(generate.requests[1].prompt, [2, 3]);
        assert_eq!((generate.requests[0].sampling.top_k, generate.requests[1].sampling.top_k), (None, Some(4)));
        assert!(generate.batch);
    }

    #[test]
    fn refuses_in_the_two_forms_of_the_contract() {
        let values = [
            json!({"input_ids": []}),
            json!({"text": "hello"}),
            json!({"input_ids": [1, -2]}),
            json!({"input_ids": [1.5]}),
            json!({"input_ids": [[1], 2]}),
            json!({"input_ids": [1], "sampling_params": {"top_k": 0}}),
            json!({"input_ids": [1], "sampling_params": {"max_new_tokens": -1}}),
            json!({"input_ids": [[1], [2]], "sampling_params": [{}]}),
            json!({"input_ids": [1], "stream": true}),
        ];
        for body in values {
            assert!(matches!(Generate::read(&body), Err(BadBody::Value(_))), "{body}");
        }
        let error = Generate::read(&json!({"input_ids": [1], "sampling_params": {"max_tokens": 4}})).unwrap_err();
        assert!(error.body()["error"].as_str().unwrap().contains("'max_tokens'"));
    }
}

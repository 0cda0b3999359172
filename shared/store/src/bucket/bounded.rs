//! Every answer of a service but an object's own bytes is small, and is held in memory as a whole: a page of a listing, an error,
//! a word about an upload. One that does not end is broken off. (HTTP's headers have bounds in the client: 400 KiB and 100 of them
//! in version 1, 16 KiB in version 2.)

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_types::body::SdkBody;
use http_body_util::{LengthLimitError, Limited};

/// Most bytes of such an answer. A page of a thousand keys, each with all that services tell of it, has half a megabyte.
pub(super) const ANSWER_BYTES: usize = 4 << 20;

/// Bounds the answers of one client.
#[derive(Debug)]
pub(super) struct SmallAnswers;

impl Intercept for SmallAnswers {
    fn name(&self) -> &'static str {
        "SmallAnswers"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let of_an_object = config.load::<Metadata>().is_some_and(|metadata| metadata.name() == "GetObject");
        let answer = context.response_mut();
        // Who reads an object counts its bytes.
        if !(of_an_object && answer.status().is_success()) {
            let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
            *answer.body_mut() = SdkBody::from_body_1_x(Limited::new(body, ANSWER_BYTES));
        }
        Ok(())
    }
}

/// Whether an answer was broken off here.
pub(super) fn was_too_long(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<LengthLimitError>())
}

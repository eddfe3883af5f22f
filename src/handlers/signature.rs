//! The signature of a webhook, by which its receiver knows who has sent it. Floor 4.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;

use crate::config::WebhookSecret;

/// Signs what is posted: the header `webhook-signature`, with a signature by each secret.
///
/// Source: Standard Webhooks, "Webhook signatures".
pub(super) fn sign(secrets: &[WebhookSecret], id: &str, timestamp: i64, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let signatures: Vec<String> = secrets
        .iter()
        .map(|secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.key());
            let signature = hmac::sign(&key, signed.as_bytes());
            format!("v1,{}", STANDARD.encode(signature))
        })
        .collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn the_example_of_the_specification_is_signed_as_there() {
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            .parse()
            .expect("a secret");
        let sign = |secrets: &[WebhookSecret]| {
            sign(
                secrets,
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                "{\"test\": 2432232314}",
            )
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(std::slice::from_ref(&secret)), expected);
        assert_eq!(
            sign(&[secret.clone(), secret]),
            format!("{expected} {expected}")
        );
    }
}

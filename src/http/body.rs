//! The bodies of requests: read up to a limit each, and together up to another. Floor 7.

use axum::http::{HeaderValue, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answer::{BAD_USER_INPUT, Refusal};
use crate::config::Limits;

/// How many of the largest bodies may be in work at the same time.
const LARGEST_BODIES: usize = 8;
/// Smaller bodies need no room: the limit of connections bounds them.
const SMALL_BYTES: usize = 64 * 1024;
/// What a permit stands for; their number has 32 bits.
const BYTES_PER_PERMIT: usize = 1024;

/// The room for all bodies in work.
pub(super) fn room_for_bodies(limits: &Limits) -> Semaphore {
    let permits = limits.max_request_bytes.div_ceil(BYTES_PER_PERMIT);
    Semaphore::new(
        permits
            .saturating_mul(LARGEST_BODIES)
            .min(Semaphore::MAX_PERMITS),
    )
}

/// The part of the room that one body takes, given back where this is dropped.
pub(super) struct Room<'a> {
    whole: &'a Semaphore,
    taken: Option<SemaphorePermit<'a>>,
}

impl<'a> Room<'a> {
    /// None of it yet.
    pub(super) fn new(whole: &'a Semaphore) -> Self {
        Self { whole, taken: None }
    }

    /// Takes room for this many bytes altogether.
    ///
    /// # Errors
    /// There is none left.
    fn grow_to(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes < SMALL_BYTES {
            return Ok(());
        }
        let taken = self.taken.as_ref().map_or(0, SemaphorePermit::num_permits);
        let missing = bytes.div_ceil(BYTES_PER_PERMIT).saturating_sub(taken);
        if missing == 0 {
            return Ok(());
        }
        let more = u32::try_from(missing)
            .ok()
            .and_then(|missing| self.whole.try_acquire_many(missing).ok())
            .ok_or_else(|| {
                let message =
                    "the server has too many large requests in work; send this one again later";
                Refusal::unavailable(message).with_header(header::CONNECTION, CLOSE)
            })?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

/// Reads a body up to the limit, without a copy where it came in one piece.
///
/// # Errors
/// It is too large or too slow, or the bodies in work leave no room for it.
pub(super) async fn read_body(
    limits: &Limits,
    room: &mut Room<'_>,
    mut body: Incoming,
) -> Result<Bytes, Refusal> {
    let limit = limits.max_request_bytes;
    let too_large = || {
        let message = format!(
            "the request is larger than {limit} bytes, which the option --max-request-bytes allows"
        );
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, BAD_USER_INPUT, message)
            .with_header(header::CONNECTION, CLOSE)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    room.grow_to(usize::try_from(body.size_hint().lower()).unwrap_or(limit))?;
    let read = async {
        let mut only = Bytes::new();
        let mut joined: Option<BytesMut> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::bad_input("the request's body broke off"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = joined.as_ref().map_or(only.len(), BytesMut::len) + data.len();
            if length > limit {
                return Err(too_large());
            }
            room.grow_to(length)?;
            match &mut joined {
                Some(joined) => joined.extend_from_slice(&data),
                None if only.is_empty() => only = data,
                None => {
                    let expected = usize::try_from(body.size_hint().lower())
                        .unwrap_or_default()
                        .min(limit);
                    let mut both = BytesMut::with_capacity(only.len() + data.len() + expected);
                    both.extend_from_slice(&only);
                    both.extend_from_slice(&data);
                    joined = Some(both);
                }
            }
        }
        Ok(joined.map_or(only, BytesMut::freeze))
    };
    tokio::time::timeout(limits.request_timeout, read)
        .await
        .unwrap_or_else(|_| {
            let message = "the request's body did not arrive in time";
            Err(
                Refusal::new(StatusCode::REQUEST_TIMEOUT, BAD_USER_INPUT, message)
                    .with_header(header::CONNECTION, CLOSE),
            )
        })
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");

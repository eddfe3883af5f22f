//! Where webhooks are posted to. Floor 0.
//!
//! `tidings_url_problem` checks the same for SQL clients, so each rule is one that a regular expression can say.

use std::{net::IpAddr, sync::Arc};

use url::{Host, Url};

/// The longest URL, in bytes, as clients write it; its normal form may be longer.
const MAX_BYTES: usize = 2000;
/// The longest name of a host, and the longest part of one, in bytes.
/// Source: RFC 1035, section 2.3.4.
const MAX_HOST_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

const NO_HOST: &str = "its host is none: use a name of letters, digits, - and ., or an address, such as 203.0.113.7 or [2001:db8::7]";

/// Where a webhook is posted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookUrl(Arc<str>);

impl WebhookUrl {
    /// Checks a URL that comes from outside. It takes less than the standard's parser does, which passes over what people write
    /// by mistake, and what is written to be mistaken by people.
    ///
    /// # Errors
    /// What would be right.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_BYTES {
            return Err("it is longer than 2000 bytes");
        }
        Self::read(text)
    }

    /// Reads a URL that was checked before it was stored; none where it is none.
    pub(super) fn stored(text: &str) -> Option<Self> {
        Self::read(text).ok()
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        if text
            .bytes()
            .any(|byte| byte.is_ascii_control() || byte == b' ' || byte == b'\\')
        {
            return Err(
                "it holds a space, a control character or a backslash: leave it out, or write it with % and its code",
            );
        }
        let authority = match text.split_once("://") {
            Some((scheme, rest)) if is_http(scheme) => {
                rest.split(['/', '?', '#']).next().unwrap_or_default()
            }
            _ => return Err("use https://… or http://…"),
        };
        if authority.contains('@') {
            return Err(
                "it holds a user or a password, which everybody who may read would see: leave them out, and have the \
                 receiver verify the signature",
            );
        }
        if text.contains('#') {
            return Err("it has a fragment (#…), which is never sent: leave it out");
        }
        let (host, port) = split_port(authority);
        if host.is_empty() {
            return Err("it has no host; use https://HOST/PATH");
        }
        if !is_port(port) {
            return Err("its port is none: use 1 to 65535, or none");
        }
        let url = Url::parse(text).map_err(|_| NO_HOST)?;
        let is_host = match url.host() {
            Some(Host::Domain(name)) => !host.contains('%') && is_host_name(name),
            // Not in any other of its forms: 0x7f.1 is not what people take it for.
            Some(Host::Ipv4(address)) => host == address.to_string(),
            Some(Host::Ipv6(_)) => true,
            None => false,
        };
        if !is_host {
            return Err(NO_HOST);
        }
        Ok(Self(url.as_str().into()))
    }

    /// The URL as text, in its normal form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address in it, where it names no host but an address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match Url::parse(&self.0).ok()?.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }

    /// The host in it, where it names one.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        match Url::parse(&self.0).ok()?.host()? {
            Host::Domain(host) => Some(host.to_owned()),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        }
    }
}

fn is_http(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// The host, and what follows it, with its colon.
fn split_port(authority: &str) -> (&str, &str) {
    let end = match authority.strip_prefix('[') {
        Some(_) => authority.find(']').map(|at| at + 1),
        None => authority.find(':'),
    };
    authority.split_at(end.unwrap_or(authority.len()))
}

/// Whether nothing follows a host, or a port that something can listen on.
fn is_port(text: &str) -> bool {
    match text.strip_prefix(':') {
        None => text.is_empty(),
        Some("") => true,
        Some(port) => {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
    }
}

fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= MAX_HOST_BYTES && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normal_form_is_read_as_itself_however_long_it_is() {
        for text in [
            "HTTPS://Example.COM:443",
            "http://example.com:0080/a/../b?c=\"d\"",
            "https://bücher.example/straße",
            &format!("https://example.com/{}", "ä".repeat(900)),
        ] {
            let url = WebhookUrl::parse(text).expect(text);
            assert_eq!(WebhookUrl::stored(url.as_str()), Some(url), "{text}");
        }
    }

    #[test]
    fn an_address_in_a_url_is_told_from_a_name() {
        let address = |text: &str| {
            let address = WebhookUrl::parse(text).map(|url| url.address());
            address.expect(text).map(|address| address.to_string())
        };
        assert_eq!(address("http://127.0.0.1/").as_deref(), Some("127.0.0.1"));
        assert_eq!(address("http://[::1]:80/").as_deref(), Some("::1"));
        assert_eq!(address("http://example.com/"), None);
    }

    #[test]
    fn an_address_that_is_not_written_as_one_is_refused() {
        for text in [
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.0.1./",
            "http://１２７.0.0.1/",
            "http://%31%32%37.0.0.1/",
        ] {
            assert_eq!(WebhookUrl::parse(text), Err(NO_HOST), "{text}");
        }
    }
}

//! The host names under which the server may be called. A web page can have its own host name
//! resolve to this machine (DNS rebinding); the browser then treats the server's answers as the
//! page's own. Without API keys, a request to an unknown host name is refused. An IP address cannot
//! be made to resolve elsewhere, so requests to one are always answered.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{StatusCode, Version, header};

use crate::error::ApiError;

/// Host names that requests may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    Any,
    /// This machine's own names, and these. `*.example.org` stands for every name below
    /// `example.org`.
    Only(Vec<String>),
}

impl Hosts {
    /// Checks that a request names one host, and one that is allowed.
    pub(crate) fn check(&self, request: &Request) -> Result<(), ApiError> {
        let mut named = request.headers().get_all(header::HOST).iter();
        let (host, second) = (named.next(), named.next());
        if second.is_some() || (host.is_none() && request.version() == Version::HTTP_11) {
            let message = "a request of HTTP/1.1 has exactly one Host header";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        let Self::Only(names) = self else { return Ok(()) };
        // A host in the request line takes precedence over the header. No client needs them to
        // differ.
        let host = host.map(|host| host.to_str().unwrap_or_default());
        let authority = request.uri().authority().map(Authority::as_str);
        match host.into_iter().chain(authority).find(|host| !is_one_of(names, host)) {
            None => Ok(()),
            Some(host) => {
                let message = format!(
                    "this server is not called {:?}; if it should be, start it with \
                     --allowed-hosts",
                    name_of(host)
                );
                Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("host_not_allowed"))
            }
        }
    }
}

/// The host name, without user and port.
fn name_of(host: &str) -> &str {
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return address;
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

fn is_one_of(names: &[String], host: &str) -> bool {
    let host = name_of(host).trim_end_matches('.').to_ascii_lowercase();
    let local = host == "localhost" || host.ends_with(".localhost");
    local
        || host.parse::<IpAddr>().is_ok()
        || names.iter().any(|name| {
            let name = name.to_ascii_lowercase();
            // The suffix keeps its dot: `badexample.org` is not below `example.org`.
            name == host || name.strip_prefix('*').is_some_and(|below| host.ends_with(below))
        })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn check(hosts: &Hosts, target: &str, host: &[&str]) -> u16 {
        let mut request = Request::builder().uri(target);
        for host in host {
            request = request.header(header::HOST, *host);
        }
        let request = request.body(Body::empty()).unwrap();
        hosts.check(&request).map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn other_names_are_refused_where_they_matter() {
        let only = Hosts::Only(vec!["gpu1".into(), "*.example.org".into()]);
        let none = Hosts::Only(Vec::new());
        for own in [
            "localhost",
            "LOCALHOST:8000",
            "a.localhost:1",
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.0.0.5",
            "localhost.",
        ] {
            assert_eq!(check(&none, "/", &[own]), 200, "{own}");
        }
        for own in ["gpu1:8000", "api.example.org", "API.Example.org:443"] {
            assert_eq!((check(&only, "/", &[own]), check(&none, "/", &[own])), (200, 403), "{own}");
        }
        for other in [
            "evil.example",
            "evil.example:8000",
            "badexample.org",
            "example.org",
            "",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
        ] {
            assert_eq!(check(&only, "/", &[other]), 403, "{other}");
            assert_eq!(check(&Hosts::Any, "/", &[other]), 200, "{other}");
        }
        assert_eq!(check(&only, "http://evil.example/", &["localhost"]), 403);
    }

    #[test]
    fn a_request_has_one_host() {
        assert_eq!(check(&Hosts::Any, "/", &[]), 400);
        assert_eq!(check(&Hosts::Any, "/", &["a", "a"]), 400);
    }
}

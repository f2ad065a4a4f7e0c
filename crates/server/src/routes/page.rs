//! The chat page: one file, compiled in. Its scripts and styles are inline and allowed by their
//! hashes, so that nothing else can run in the page.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ring::digest::{SHA256, digest};

use crate::service::Service;

const PAGE: &str = include_str!("../page/index.html");
/// The page's element for example questions, which holds a JSON list.
const EXAMPLES: &str = r#"<script type="application/json" id="examples">[]"#;

/// The content security policy: the page runs its own scripts, and calls its own server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (scripts, styles) = (hashes(PAGE, "script"), hashes(PAGE, "style"));
    format!(
        "default-src 'none'; script-src{scripts}; style-src{styles}; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The page.
pub(crate) async fn page(State(service): State<Arc<Service>>) -> Response {
    let mut response =
        axum::response::Html(with_examples(&service.config.examples)).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Browsers request `/favicon.ico`; the page has its icon inline.
pub(crate) async fn no_icon() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The page with these example questions.
fn with_examples(examples: &[String]) -> String {
    let list = serde_json::json!(examples).to_string();
    // Without `<`, no example can end the script element that holds the list.
    let list = list.replace('<', "\\u003c");
    PAGE.replacen(EXAMPLES, &EXAMPLES.replace("[]", &list), 1)
}

/// Hashes of the contents of these elements, as the policy lists them.
fn hashes(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}"), format!("</{element}>"));
    let mut sources = String::new();
    let mut rest = page;
    while let Some(at) = rest.find(&open) {
        rest = &rest[at + open.len()..];
        let Some((attributes, body)) = rest.split_once('>') else { break };
        let Some((body, after)) = body.split_once(&close) else { break };
        rest = after;
        // Otherwise it is another element, whose name only begins the same.
        if attributes.is_empty() || attributes.starts_with([' ', '\n']) {
            let hash = base64(digest(&SHA256, body.as_bytes()).as_ref());
            sources.extend([" 'sha256-", &hash, "'"]);
        }
    }
    if sources.is_empty() { " 'none'".into() } else { sources }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |index: usize| u32::from(three.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= three.len() { DIGITS[index] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_usual_one() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbe]), "/+++");
    }

    #[test]
    fn every_inline_element_has_its_hash() {
        let page = "<style>a</style><script type=\"module\">b</script><scripted>c</scripted>";
        let hash =
            |text: &str| format!(" 'sha256-{}'", base64(digest(&SHA256, text.as_bytes()).as_ref()));
        assert_eq!(hashes(page, "style"), hash("a"));
        assert_eq!(hashes(page, "script"), hash("b"));
        assert_eq!(hashes("<p>", "script"), " 'none'");
    }

    #[test]
    fn examples_are_data_and_nothing_else() {
        assert_eq!(with_examples(&[]), PAGE);
        let page = with_examples(&["</script><script>x".into(), "a \"b\"".into()]);
        let list = r#"["\u003c/script>\u003cscript>x","a \"b\""]"#;
        assert!(page.contains(&format!("id=\"examples\">{list}</script>")));
        assert_eq!(hashes(&page, "style"), hashes(PAGE, "style"));
    }

    /// The policy would stop scripts and styles outside their own elements.
    #[test]
    fn the_page_has_nothing_that_its_policy_stops() {
        for attribute in [" style=", " onclick=", " onload=", " onsubmit=", "javascript:", " src="]
        {
            assert!(!PAGE.contains(attribute), "{attribute}");
        }
    }
}

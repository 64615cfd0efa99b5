//! The client against small servers: redirects, repetitions, limits, TLS.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::Arc,
};

use super::*;

/// Answers each connection with the next text; `None` closes it unanswered. Gives back the heads of the requests.
fn serve(answers: Vec<Option<String>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let handle = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            seen.push(String::from_utf8_lossy(&request[..length]).into_owned());
            if let Some(answer) = answer {
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
        seen
    });
    (address, handle)
}

fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

async fn send(
    method: Method,
    url: &str,
    body: &'static str,
    max_retries: u32,
) -> Result<Response<Bytes>, ClientError> {
    let mut client = Client::new(ClientSettings {
        tls: TlsParameters::default(),
        timeout: Duration::from_secs(10),
        max_retries,
    });
    let mut headers = HeaderMap::new();
    headers.insert("x-vault-token", HeaderValue::from_static("hvs.t"));
    client
        .send(&method, url, &headers, &Bytes::from_static(body.as_bytes()))
        .await
}

#[tokio::test]
async fn follows_307_with_everything() {
    let (target, there) = serve(vec![answer("200 OK", "", "done")]);
    let (first, here) = serve(vec![answer(
        "307 X",
        &format!("location: {target}/v1/x?y=1\r\n"),
        "",
    )]);
    let response = send(Method::PUT, &format!("{first}/v1/x"), "{\"a\":1}", 0)
        .await
        .unwrap();
    assert_eq!(response.body(), "done");
    here.join().unwrap();
    let seen = there.join().unwrap().remove(0);
    assert!(seen.starts_with("PUT /v1/x?y=1 HTTP/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("x-vault-token: hvs.t\r\n") && seen.ends_with("{\"a\":1}"),
        "{seen}"
    );
}

#[tokio::test]
async fn redirects_end() {
    let looping = vec![answer("307 X", "location: /again\r\n", ""); MAX_REDIRECTS + 1];
    let (url, server) = serve(looping);
    let error = send(Method::GET, &url, "", 0).await.unwrap_err();
    assert!(matches!(error, ClientError::Redirects), "{error:?}");
    assert_eq!(server.join().unwrap().len(), MAX_REDIRECTS + 1);

    let (url, server) = serve(vec![answer("302 X", "location: /other\r\n", "")]);
    let response = send(Method::PUT, &url, "x", 0).await.unwrap();
    assert_eq!(response.status(), 302, "a write is not turned into a read");
    server.join().unwrap();
}

#[test]
fn tokens_stay_on_tls() {
    let response = |location: &str| {
        Response::builder()
            .status(307)
            .header(LOCATION, location)
            .body(Bytes::new())
            .unwrap()
    };
    let from: Uri = "https://a:1/x".parse().unwrap();
    for (location, want) in [
        ("https://b:2/y", Some("https://b:2/y")),
        ("/y", Some("https://a:1/y")),
        ("http://b:2/y", None),
        ("ftp://b", None),
    ] {
        let got = redirect(&from, &Method::GET, &response(location))
            .ok()
            .flatten();
        assert_eq!(
            got.map(|uri| uri.to_string()).as_deref(),
            want,
            "{location}"
        );
    }
}

#[tokio::test]
async fn repeats_reads_that_may_pass() {
    for (method, answers, retries, want, requests) in [
        (
            Method::GET,
            vec![answer("503 X", "", ""), answer("200 OK", "", "")],
            2,
            200,
            2,
        ),
        (Method::GET, vec![None, answer("200 OK", "", "")], 2, 200, 2),
        (Method::GET, vec![answer("412 X", "", ""); 3], 2, 412, 3),
        (Method::GET, vec![answer("501 X", "", "")], 2, 501, 1),
        (Method::GET, vec![answer("404 X", "", "")], 2, 404, 1),
        (
            Method::GET,
            vec![answer("503 X", "", "{\"errors\":[\"Vault is sealed\"]}")],
            2,
            503,
            1,
        ),
        (Method::PUT, vec![answer("503 X", "", "")], 2, 503, 1),
        (Method::GET, vec![answer("503 X", "", "")], 0, 503, 1),
    ] {
        let (url, server) = serve(answers);
        let response = send(method, &url, "", retries).await.unwrap();
        assert_eq!(response.status(), want);
        assert_eq!(server.join().unwrap().len(), requests);
    }
}

#[tokio::test]
async fn a_write_whose_connection_broke_is_not_sent_again() {
    let (url, server) = serve(vec![None]);
    let error = send(Method::PUT, &url, "x", 2).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken(_)), "{error:?}");
    assert_eq!(server.join().unwrap().len(), 1);
}

#[tokio::test]
async fn every_request_ends() {
    // Accepts in the kernel's backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let none = TlsParameters::default();
    let timeout = Duration::from_millis(100);
    let error = one_request(Method::GET, &url, None, &none, timeout)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Timeout), "{error:?}");
    for url in [
        "",
        "x",
        "/v1",
        "ftp://a",
        "http://",
        "http:// a",
        "unix:///x",
    ] {
        let error = one_request(Method::GET, url, None, &none, timeout)
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Address(_)), "{url}: {error:?}");
    }
}

/// A TLS server for `localhost` that answers one request if the handshake works; its certificate as PEM.
async fn serve_tls() -> (u16, String) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut request = [0; 1024];
                let _length = stream.read(&mut request).await.unwrap();
                let text = answer("200 OK", "", "secure").unwrap();
                stream.write_all(text.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        }
    });
    (port, made.cert.pem())
}

#[tokio::test]
async fn verifies_the_server() {
    let (port, pem) = serve_tls().await;
    let trusting = TlsParameters::from_pem(&pem, "", "", "").unwrap();
    let renamed = TlsParameters {
        server_name: Some("localhost".to_owned()),
        ..trusting.clone()
    };
    let blind = TlsParameters {
        skip_verify: true,
        ..TlsParameters::default()
    };
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let foreign = TlsParameters::from_pem(&other.cert.pem(), "", "", "").unwrap();
    let by_name = format!("https://localhost:{port}/");
    let by_address = format!("https://127.0.0.1:{port}/");
    for (url, tls, works) in [
        (&by_name, &trusting, true),
        (&by_address, &trusting, false),
        (&by_address, &renamed, true),
        (&by_address, &blind, true),
        (&by_name, &foreign, false),
    ] {
        let outcome = one_request(Method::GET, url, None, tls, Duration::from_secs(5)).await;
        match outcome {
            Ok(response) => assert!(works && response.body() == "secure", "{url}"),
            Err(error) => {
                assert!(
                    !works && matches!(error, ClientError::Connect { .. }),
                    "{url}: {error:?}"
                );
            }
        }
    }
}

#[test]
fn parameters_are_checked() {
    let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    assert!(TlsParameters::from_pem("", "", "", "").is_ok());
    assert!(TlsParameters::from_pem(&cert, &cert, &key, "n").is_ok());
    for (ca, client_cert, client_key) in [
        ("junk", "", ""),
        ("", cert.as_str(), ""),
        ("", "", key.as_str()),
        ("", cert.as_str(), "junk"),
    ] {
        let error = TlsParameters::from_pem(ca, client_cert, client_key, "").unwrap_err();
        assert!(!error.to_string().contains("PRIVATE"), "{error}");
    }
    let shown = format!(
        "{:?}",
        TlsParameters::from_pem(&cert, &cert, &key, "").unwrap()
    );
    assert!(!shown.contains("BEGIN"), "{shown}");
}

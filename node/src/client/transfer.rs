//! Bodies of any length: a snapshot to a file, or a file to the server.
//!
//! Invariants
//! - Nothing is in memory as a whole, and nothing is repeated.
//! - What stands still for the client's time-out is given up; there is no limit on the whole.

use std::{
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri,
    header::{CONTENT_LENGTH, HOST},
};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncReadExt as _, time::timeout};

use super::{Client, ClientError, MAX_BODY, MAX_REDIRECTS, parse, redirect};

/// Bytes read from a file at a time.
const PIECE: usize = 256 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    /// `GET`s `url`; the body of a success goes to `sink`, that of a refusal is in the response.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn download(
        &mut self,
        url: &str,
        headers: &HeaderMap,
        sink: &mut dyn Write,
    ) -> Result<Response<Bytes>, ClientError> {
        let mut uri = parse(url)?;
        let idle = self.settings.timeout;
        for _ in 0..=MAX_REDIRECTS {
            let request = head(&Method::GET, &uri, headers)?.map(|()| Full::new(Bytes::new()));
            let sending = self.send_once(&uri, request);
            let response = timeout(idle, sending)
                .await
                .map_err(|_elapsed| ClientError::Timeout)??;
            if !response.status().is_success() {
                let response = whole(response, idle).await?;
                match redirect(&uri, &Method::GET, &response)? {
                    Some(next) => uri = next,
                    None => return Ok(response),
                }
                continue;
            }
            let (parts, mut body) = response.into_parts();
            loop {
                let frame = timeout(idle, body.frame())
                    .await
                    .map_err(|_elapsed| ClientError::Timeout)?;
                match frame {
                    None => return Ok(Response::from_parts(parts, Bytes::new())),
                    Some(Err(error)) => return Err(ClientError::Broken(Box::new(error))),
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            sink.write_all(data).map_err(ClientError::Sink)?;
                        }
                    }
                }
            }
        }
        Err(ClientError::Redirects)
    }

    /// `POST`s the content of `file` to `url`. The answer may take as long as the server works on it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn upload(
        &mut self,
        url: &str,
        headers: &HeaderMap,
        file: &Path,
    ) -> Result<Response<Bytes>, ClientError> {
        let mut uri = parse(url)?;
        let idle = self.settings.timeout;
        for _ in 0..=MAX_REDIRECTS {
            let (body, len) = content(file).await.map_err(ClientError::Sink)?;
            let mut request = head(&Method::POST, &uri, headers)?.map(|()| body);
            request
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(len));
            let response = self.send_once(&uri, request).await?;
            let response = whole(response, idle).await?;
            match redirect(&uri, &Method::POST, &response)? {
                Some(next) => uri = next,
                None => return Ok(response),
            }
        }
        Err(ClientError::Redirects)
    }

    async fn send_once<B>(
        &mut self,
        uri: &Uri,
        request: Request<B>,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let broken = |error: hyper::Error| ClientError::Broken(Box::new(error));
        let stream = timeout(self.settings.timeout, self.connect(uri))
            .await
            .map_err(|_elapsed| ClientError::Timeout)??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends with the connection; its error is also what the request gets.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)
    }
}

fn head(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Request<()>, ClientError> {
    let invalid = || ClientError::Address(uri.to_string());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let authority = uri.authority().ok_or_else(invalid)?;
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .body(())
        .map_err(|_| invalid())?;
    request.headers_mut().clone_from(headers);
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| invalid())?;
    request.headers_mut().insert(HOST, host);
    Ok(request)
}

async fn whole(
    response: Response<Incoming>,
    idle: std::time::Duration,
) -> Result<Response<Bytes>, ClientError> {
    let (parts, body) = response.into_parts();
    let body = timeout(idle, Limited::new(body, MAX_BODY).collect())
        .await
        .map_err(|_elapsed| ClientError::Timeout)?
        .map_err(ClientError::Broken)?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// A file's content as a body, and its length.
async fn content(file: &Path) -> io::Result<(UnsyncBoxBody<Bytes, io::Error>, u64)> {
    let file = tokio::fs::File::open(file).await?;
    let len = file.metadata().await?.len();
    let pieces = stream::unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Frame::data(Bytes::from(piece))), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    Ok((UnsyncBoxBody::new(StreamBody::new(pieces)), len))
}

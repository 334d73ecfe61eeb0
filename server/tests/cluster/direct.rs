//! A bare asynchronous client: asks the node it was told to, whatever the metadata say.
//!
//! That is how a deposed leader is found out that still answers. Errors: anything but an answer ends the connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use corelog_schemas::messages::{ErrorResponse, HandshakeRequest};
use corelog_schemas::{Encoder, Failure, Features, FrameLimits, Request, decode, parse_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 64 << 20, head_bytes_max: 8 << 20 };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection to one shard, one request at a time.
pub(crate) struct Direct {
    stream: TcpStream,
    encoder: Encoder,
    correlation_id: u32,
}

impl Direct {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let mut direct = Self { stream, encoder: Encoder::default(), correlation_id: 0 };
        let hello = HandshakeRequest {
            protocol_version_min: 1,
            protocol_version_max: 1,
            features: Features::default(),
            client_id: "direct".to_owned(),
            software: "test".to_owned(),
        };
        direct.ask(&hello, &[], CONNECT_TIMEOUT).await?.map_err(io::Error::other)?;
        Ok(direct)
    }

    /// Asks and waits for the answer and its payload; `Ok(Err)`: it was refused as a whole.
    pub(crate) async fn ask<R: Request>(
        &mut self,
        request: &R,
        payload: &[u8],
        patience: Duration,
    ) -> io::Result<Result<(R::Response, Vec<u8>), Failure>> {
        self.correlation_id += 1;
        let mut frame = Vec::new();
        self.encoder.request(&mut frame, self.correlation_id, request);
        frame.extend_from_slice(payload);
        let exchange = async {
            self.stream.write_all(&frame).await?;
            let mut answer = vec![0; 4];
            self.stream.read_exact(&mut answer).await?;
            let length = u32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]) as usize;
            answer.resize(4 + length, 0);
            self.stream.read_exact(&mut answer[4..]).await?;
            Ok::<_, io::Error>(answer)
        };
        let answer = timeout(patience, exchange).await??;
        let nonsense = || io::Error::other("the answer is no frame");
        let parsed = parse_frame(&answer, &LIMITS).map_err(io::Error::other)?.ok_or_else(nonsense)?;
        let payload_bytes = parsed.prefix.payload_bytes();
        if parsed.prefix.api != R::API.number() {
            let refused: ErrorResponse = decode(parsed.head, 0).map_err(io::Error::other)?;
            return Ok(Err(refused.failure));
        }
        let response = decode(parsed.head, payload_bytes).map_err(io::Error::other)?;
        let payload = answer[answer.len() - payload_bytes as usize..].to_vec();
        Ok(Ok((response, payload)))
    }
}

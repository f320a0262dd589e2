//! Streams of JSON values, one per line.

use std::{collections::VecDeque, marker::PhantomData};

use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use crate::{
    Client, Error,
    connection::{Answer, Call},
};

/// The longest line that is read, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 20;

/// Values as they come. Dropping it ends the request.
pub struct Lines<T> {
    client: Client,
    call: Call,
    answer: Answer,
    /// What came after the last line end.
    rest: Vec<u8>,
    whole: VecDeque<Vec<u8>>,
    ended: bool,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(crate) async fn open(client: &Client, call: Call) -> Result<Self, Error> {
        let answer = client.send(&call).await?;
        let (client, rest, whole) = (client.clone(), Vec::new(), VecDeque::new());
        Ok(Self {
            client,
            call,
            answer,
            rest,
            whole,
            ended: false,
            value: PhantomData,
        })
    }

    /// The next value, as soon as it is there; `None` at the end of the stream. Nothing is lost when this is
    /// dropped while it waits.
    ///
    /// # Errors
    /// When the connection is cut in the middle, or a line is not what was announced.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let value = serde_json::from_slice(&line);
                let foreign = |source| Error::Foreign {
                    doing: self.call.doing.clone(),
                    source,
                };
                return value.map(Some).map_err(foreign);
            }
            if self.ended {
                return Ok(None);
            }
            match self.answer.response.frame().await {
                None => {
                    self.ended = true;
                    self.whole.push_back(std::mem::take(&mut self.rest));
                }
                Some(Err(source)) => {
                    self.ended = true;
                    return Err(self.client.cut(&self.call, source));
                }
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    self.take(&bytes)?;
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        self.rest
            .extend_from_slice(pieces.next().unwrap_or_default());
        for piece in pieces {
            self.whole
                .push_back(std::mem::replace(&mut self.rest, piece.to_vec()));
        }
        if self.rest.len() > LINE_BYTES_MAX {
            let doing = self.call.doing.clone();
            return Err(Error::LineTooLong {
                doing,
                bytes_max: LINE_BYTES_MAX,
            });
        }
        Ok(())
    }
}

//! Writing what lies in several places: `send` where that is little, `writev` where copying would cost more.
//!
//! A head and a short body are the common case, and `writev` goes the long way through the kernel's file layer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

/// Up to here bytes are put together first.
const TOGETHER_MAX: usize = 4 << 10;

/// Writes some of the pieces.
pub(crate) fn poll_write<S: AsyncWrite>(
    stream: Pin<&mut S>,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [piece] = pieces {
        return stream.poll_write(cx, piece);
    }
    let total: usize = pieces.iter().map(|piece| piece.len()).sum();
    if total > TOGETHER_MAX {
        return stream.poll_write_vectored(cx, pieces);
    }
    let mut together = [0; TOGETHER_MAX];
    let mut end = 0;
    for piece in pieces {
        together[end..end + piece.len()].copy_from_slice(piece);
        end += piece.len();
    }
    stream.poll_write(cx, &together[..end])
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn every_byte_arrives_in_order_whatever_its_pieces() {
        let lengths = [
            vec![1],
            vec![10, 0, 20],
            vec![TOGETHER_MAX / 2, TOGETHER_MAX / 2],
            vec![TOGETHER_MAX / 2, TOGETHER_MAX / 2 + 1],
            vec![100, 3 * TOGETHER_MAX],
        ];
        for lengths in lengths {
            let (mut here, mut there) = tokio::io::duplex(1 << 20);
            let pieces: Vec<Vec<u8>> = lengths
                .iter()
                .zip(1..)
                .map(|(length, byte)| vec![byte; *length])
                .collect();
            let expected = pieces.concat();
            let mut sent = 0;
            while sent < expected.len() {
                let mut skipped = sent;
                let rest: Vec<IoSlice<'_>> = pieces
                    .iter()
                    .map(|piece| {
                        let skip = skipped.min(piece.len());
                        skipped -= skip;
                        IoSlice::new(&piece[skip..])
                    })
                    .collect();
                sent += std::future::poll_fn(|cx| poll_write(Pin::new(&mut here), cx, &rest))
                    .await
                    .expect("written");
            }
            drop(here);
            let mut got = Vec::new();
            there.read_to_end(&mut got).await.expect("read");
            assert_eq!(got, expected);
        }
    }
}

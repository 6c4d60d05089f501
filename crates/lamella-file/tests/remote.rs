//! Reading over HTTP ranges, from a server of a few lines on this machine.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "container/sample.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod sample;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use lamella_file::{File, FileError};

/// What the server does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    IgnoresRanges,
    ChangesVersion,
    SendsTooLittle,
    NotFound,
}

/// Serves `bytes` from a thread of its own: the address, and the bytes sent for each request so far.
fn serve(bytes: Vec<u8>, fault: Fault) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/model.lam", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                let n = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..n]);
            }
            let request = String::from_utf8(request).unwrap().to_lowercase();
            let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.trim().parse().unwrap());
            let (mut from, mut to) = (first, (last + 1).min(bytes.len()));
            let mut head = format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
                to.max(1) - 1,
                bytes.len()
            );
            match fault {
                Fault::IgnoresRanges => (from, to, head) = (0, bytes.len(), "200 OK".to_owned()),
                Fault::NotFound => (from, to, head) = (0, 0, "404 Not Found".to_owned()),
                Fault::SendsTooLittle if first > 0 => to -= 1,
                _ if first >= bytes.len() => {
                    (from, to) = (0, 0);
                    head = format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{}", bytes.len());
                }
                _ => {}
            }
            let version = if fault == Fault::ChangesVersion { first } else { 0 };
            sent.lock().unwrap().push(to - from);
            let head = format!(
                "HTTP/1.1 {head}\r\nETag: \"{version}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                to - from
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes[from..to]));
        }
    });
    (url, log)
}

fn message(error: &FileError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

#[test]
fn inspecting_reads_only_the_manifest() {
    let sample = sample::language_model(4, 2);
    let bytes = sample.bytes();
    let (url, log) = serve(bytes.clone(), Fault::None);
    let file = File::open_url(&url).unwrap();
    let local = File::from_bytes(bytes.clone()).unwrap();
    let (found, expected) = (file.inspect(), local.inspect());
    assert_eq!((found.bytes, found.layers), (expected.bytes, expected.layers));
    assert_eq!(found.arrays.len(), expected.arrays.len());
    let sent = log.lock().unwrap().clone();
    println!("{} bytes of {} in {} requests", sent.iter().sum::<usize>(), bytes.len(), sent.len());
    assert!(
        sent.len() <= 2 && sent.iter().sum::<usize>() <= 4096.max(local.layout().manifest_bytes as usize)
    );

    // A layer takes one more request, of its own length.
    assert_eq!(file.layer(7).unwrap(), local.layer(7).unwrap());
    let sent = log.lock().unwrap().clone();
    assert_eq!(*sent.last().unwrap() as u64, local.manifest().layers[7].length_bytes);
    assert_eq!(file.side_files().unwrap(), local.side_files().unwrap());
    file.verify(|_| {}).unwrap();
}

#[test]
fn small_files_take_one_request() {
    let bytes = sample::small().bytes();
    let (url, log) = serve(bytes.clone(), Fault::None);
    let file = File::open_url(&url).unwrap();
    file.verify(|_| {}).unwrap();
    assert_eq!(*log.lock().unwrap(), [bytes.len()]);
}

#[test]
fn servers_that_fail_are_named() {
    let bytes = sample::language_model(4, 2).bytes();
    let opened = |fault| File::open_url(&serve(bytes.clone(), fault).0);
    let error = |fault| message(&opened(fault).unwrap_err());
    assert!(error(Fault::NotFound).contains("no such file"));
    assert!(error(Fault::IgnoresRanges).contains("does not answer ranges"));
    let layer = |fault| message(&opened(fault).unwrap().layer(7).unwrap_err());
    assert!(layer(Fault::ChangesVersion).contains("changed while it was read"));
    assert!(!layer(Fault::SendsTooLittle).is_empty());
    assert!(message(&File::open_url("http://127.0.0.1:1/model.lam").unwrap_err()).contains("opening"));
    let empty = File::open_url(&serve(Vec::new(), Fault::None).0).unwrap_err();
    assert!(message(&empty).contains("ends inside"), "{empty}");
}

//! `lamella inspect http://…` and `run http://… --budget`: with the feature `remote` from a server on this machine, without it a named refusal.

#[cfg(not(feature = "remote"))]
#[test]
fn a_build_without_the_feature_says_how_to_get_it() {
    let address = "http://127.0.0.1:9/story.lam";
    crate::support::refused(&["inspect", address], &["this build reads no addresses", "--features remote"]);
}

#[cfg(feature = "remote")]
mod with_the_feature {
    use crate::support::{done, refused, scratch};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    /// Answers ranges of `bytes`, one request a connection; logs how many bytes each took.
    fn serve(bytes: Vec<u8>) -> (String, Arc<Mutex<Vec<usize>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
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
                if !request.starts_with("get /story.lam ") {
                    let _ = stream.write_all(
                        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    );
                    continue;
                }
                let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap();
                let (first, last) = range.trim().split_once('-').unwrap();
                let (from, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                let to = (last + 1).min(bytes.len());
                sent.lock().unwrap().push(to - from);
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    to - 1,
                    bytes.len(),
                    to - from
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes[from..to]));
            }
        });
        (address, log)
    }

    #[test]
    fn the_manifest_alone_crosses_the_network() {
        let directory = scratch();
        let path = directory.path().join("story.lam");
        let path = path.to_str().unwrap();
        let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/stories260k");
        done(&["compress", story.to_str().unwrap(), "--recipe", "rtn(bits=3)", "-o", path]);
        let bytes = std::fs::read(path).unwrap();
        let (address, log) = serve(bytes.clone());
        let remote = done(&["inspect", &format!("{address}/story.lam"), "--json"]).json();
        assert_eq!(remote, done(&["inspect", path, "--json"]).json());
        let sent = log.lock().unwrap().clone();
        println!("{} of {} bytes in {} requests", sent.iter().sum::<usize>(), bytes.len(), sent.len());
        assert!(sent.len() <= 2 && sent.iter().sum::<usize>() < bytes.len() / 4, "{sent:?}");
        refused(&["inspect", &format!("{address}/other.lam")], &["the server has no such file"]);
    }

    #[test]
    fn a_model_runs_once_its_smallest_prefix_has_come() {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let whole = path("story.lam");
        let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/stories260k");
        let recipe = ["--recipe", "progressive(bits=4)", "--allocate", "uniform", "-o", &whole];
        done(&[&["compress", story.to_str().unwrap()], &recipe[..]].concat());
        let bytes = std::fs::read(&whole).unwrap();
        let inspected = done(&["inspect", &whole, "--json"]).json();
        let smallest = inspected["smallest_complete_bytes"].as_u64().unwrap();
        let (address, log) = serve(bytes.clone());
        let (address, budget) = (format!("{address}/story.lam"), smallest.to_string());
        let run = ["--budget", &budget, "--max-tokens", "0", "--logits"];
        let ran = done(&[&["run", &address, "Once upon a time"], &run[..], &[&path("far.npy")]].concat());
        done(&[&["run", &whole, "Once upon a time"], &run[..], &[&path("near.npy")]].concat());
        assert_eq!(std::fs::read(path("far.npy")).unwrap(), std::fs::read(path("near.npy")).unwrap());
        let sent: usize = log.lock().unwrap().iter().sum();
        println!("{sent} of {} bytes: {}", bytes.len(), ran.err.trim());
        assert!(sent as u64 <= smallest + 16 * 1024 && sent < bytes.len(), "{sent} of {smallest}");
        assert!(ran.err.contains("usable after"), "{}", ran.err);
    }
}

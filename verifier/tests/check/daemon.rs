//! A daemon as far as a repair sees it: it takes keys, and somebody's function carries them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::Value as Json;

/// The address that it answers at. It ends with the process.
pub(crate) struct Daemon {
    pub(crate) listen: String,
}

impl Daemon {
    /// `carry` gets the body of each repair.
    pub(crate) fn start(mut carry: impl FnMut(&Json) + Send + 'static) -> Daemon {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &mut carry);
            }
        });
        Daemon { listen }
    }

    /// What the configuration says of it.
    pub(crate) fn config(&self) -> String {
        format!("[api]\nlisten = \"{}\"", self.listen)
    }
}

fn answer(mut stream: TcpStream, carry: &mut impl FnMut(&Json)) {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut length) = (String::new(), 0);
    input.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).unwrap();
        match line.trim().split_once(':') {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap();
            }
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).unwrap();
    // Of its status it says nothing, as one that starts.
    let (status, told) = match first.starts_with("POST ") {
        true => {
            carry(&serde_json::from_slice(&body).unwrap());
            ("200 OK", "{\"asked\":1}")
        }
        false => ("404 Not Found", "{}"),
    };
    let length = told.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all((head + told).as_bytes()).unwrap();
}

use super::*;

fn collector(replies: &[(u32, Expect)], conditional: bool) -> Collector {
    let expected = Expected { replies: replies.to_vec(), ..Expected::default() };
    Collector::new(expected, "apply 1 changes".into(), conditional)
}

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

/// Gives one reply after the other, and returns what the last one brought.
fn after(collector: &mut Collector, replies: Vec<Reply>) -> Result<Outcome> {
    for reply in replies {
        if let Answer::Outcome(outcome) = collector.take(reply, "host:1")? {
            return Ok(outcome);
        }
    }
    panic!("more was expected");
}

const OWN: (u32, Expect) = (0, Expect::Own);

#[test]
fn queued_replies_are_skipped_and_counted() {
    let mut collector = collector(&[OWN, (0, Expect::NoError)], false);
    let mut buf = BytesMut::from(&b"+QUEUED\r\n+QUEUED\r\n+QUE"[..]);
    assert!(!collector.skip_queued(&mut buf), "MULTI is answered first");
    assert!(matches!(collector.take(ok(), "host:1"), Ok(Answer::More)));
    assert!(collector.skip_queued(&mut buf));
    assert_eq!(buf, "+QUE");
    assert!(!collector.skip_queued(&mut buf));
    let outcome = after(&mut collector, vec![Reply::Array(Some(vec![ok(), ok()]))]).unwrap();
    assert_eq!(outcome, Outcome::Committed { refused: vec![], existing: vec![] });
}

#[test]
fn the_first_error_of_a_change_is_its_reason() {
    let mut collector = collector(&[OWN, (4, Expect::NoError), (4, Expect::NoError)], false);
    let error = |text: &str| Reply::Error(text.into());
    let replies = vec![ok(), error("WRONGTYPE a"), error("ERR b")];
    let outcome = after(&mut collector, vec![ok(), ok(), ok(), ok(), Reply::Array(Some(replies))]).unwrap();
    let refused = vec![Refused { index: 4, reason: "WRONGTYPE a".into() }];
    assert_eq!(outcome, Outcome::Committed { refused, existing: vec![] });
}

#[test]
fn a_batch_that_was_not_executed_is_rejected_for_its_reason() {
    let abort = || Reply::Error("EXECABORT Transaction discarded because of previous errors.".into());
    let run = |first: &str, second: &str| {
        let mut collector = collector(&[OWN, (0, Expect::NoError), (1, Expect::NoError)], false);
        let reply = |text: &str| if text.is_empty() { ok() } else { Reply::Error(text.into()) };
        after(&mut collector, vec![ok(), ok(), reply(first), reply(second), abort()])
    };
    let rejected = |transient, reason: &str| Outcome::Rejected { transient, reason: reason.into() };
    assert_eq!(run("OOM used", "").unwrap(), rejected(true, "OOM used"));
    assert_eq!(run("NOPERM x", "OOM used").unwrap(), rejected(true, "OOM used"));
    let unknown = "ERR unknown command 'X', with args beginning with: 'secret' ";
    assert_eq!(run("", unknown).unwrap(), rejected(false, "ERR unknown command 'X'"));
    let error = run("READONLY You can't", "").unwrap_err();
    assert_eq!(error.kind(), causeway_core::ErrorKind::Retry);
    let mut own = collector(&[OWN], false);
    let error = after(&mut own, vec![ok(), Reply::Error("NOPERM no SET".into()), abort()]).unwrap_err();
    assert_eq!(error.kind(), causeway_core::ErrorKind::Setup);
}

#[test]
fn exec_itself_may_meet_the_obstacle() {
    let mut collector = collector(&[OWN], false);
    let text = "EXECABORT Transaction discarded because of: OOM command not allowed";
    let outcome = after(&mut collector, vec![ok(), ok(), Reply::Error(text.into())]).unwrap();
    let reason = "OOM command not allowed".into();
    assert_eq!(outcome, Outcome::Rejected { transient: true, reason });
}

#[test]
fn nil_is_an_answer_to_a_condition_only() {
    let nil = || vec![ok(), ok(), Reply::Array(None)];
    assert_eq!(after(&mut collector(&[OWN], true), nil()).unwrap(), Outcome::Touched);
    assert!(after(&mut collector(&[OWN], false), nil()).is_err());
    let short = vec![ok(), ok(), Reply::Array(Some(vec![]))];
    assert!(after(&mut collector(&[OWN], true), short).is_err());
}

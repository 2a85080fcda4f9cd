//! A worker whose step loop dies takes the embedded mesh down with an error, so that whoever runs it starts it again.
//! Its own program, because it sets a trap for the whole process: the first event that the loop's thread logs after the
//! trap is armed panics there.

#[path = "mesh/support/mod.rs"]
mod support;
#[path = "../../services/worker/tests/trap/mod.rs"]
mod trap;

use std::sync::atomic::{AtomicBool, Ordering};
use support::{tiny_adapter, tiny_model};
use weft_cli::client::{Admin, Data};
use weft_cli::embedded;

static ARMED: AtomicBool = AtomicBool::new(false);

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_step_loop_ends_the_mesh_with_an_error() {
    trap::set(|| assert!(!ARMED.load(Ordering::SeqCst), "provoked"));
    let model = tiny_model().display().to_string();
    let (mesh, _shutdown) = embedded::start_private(vec!["--model".to_owned(), model]).await.unwrap();
    let admin = Admin::new(&mesh.admin_url(), mesh.admin_key());
    admin.create_tenant("harbour").await.unwrap();
    let data = Data::new(&mesh.data_url(), &admin.create_key("harbour", None).await.unwrap().secret);
    admin.publish("harbour", "voice", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    data.complete_tokens("base", &[65, 66], 4).await.unwrap();

    ARMED.store(true, Ordering::SeqCst);
    // The loop logs that the adapter has its slot.
    let failed = data.complete_tokens("voice", &[65, 66], 4).await.unwrap_err().to_string();
    assert!(failed.contains("503") || failed.contains("500"), "{failed}");
    let error = format!("{:#}", mesh.finished().await.unwrap_err());
    assert!(error.contains("the worker failed") && error.contains("step loop"), "{error}");
}

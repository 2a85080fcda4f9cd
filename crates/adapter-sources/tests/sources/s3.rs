//! Prefixes of a real S3 server.

use crate::support::{bytes, weights};
use std::net::SocketAddr;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_adapter_sources::{Access, Error, Opened, S3Access, Sources};
use weft_fault::Kind;
use weft_object_store::{EmbeddedS3, ObjectStore, S3Store};

struct Server {
    _folder: TempDir,
    _server: EmbeddedS3,
    store: Arc<S3Store>,
    access: Access,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = EmbeddedS3::start(folder.path(), listen).await.unwrap();
        let settings = server.settings("adapters");
        let store = Arc::new(S3Store::connect(&settings).await.unwrap());
        store.ensure_bucket().await.unwrap();
        let s3 = S3Access {
            endpoint: settings.endpoint,
            region: settings.region,
            access_key_id: settings.access_key_id,
            secret_access_key: settings.secret_access_key,
            path_style: settings.path_style,
        };
        let access = Access { s3_buckets: vec!["adapters".to_owned()], s3, ..Access::default() };
        Self { _folder: folder, _server: server, store, access }
    }

    async fn put(&self, key: &str, content: Vec<u8>) -> String {
        self.store.put(key, content.into()).await.unwrap().as_str().trim_matches('"').to_owned()
    }

    async fn open(&self, source: &str) -> Result<Opened, Error> {
        Sources::new(self.access.clone()).unwrap().open(&source.parse().unwrap()).await
    }
}

#[tokio::test]
async fn a_prefix_is_read_and_known_by_its_etags() {
    let server = Server::start().await;
    let config = server.put("team/mine/adapter_config.json", b"{}".to_vec()).await;
    let tensors = server.put("team/mine/adapter_model.safetensors", bytes(2_500_000)).await;
    server.put("team/mine/chat_template.jinja", b"x".to_vec()).await;
    server.put("team/mine/notes.txt", b"x".to_vec()).await;
    server.put("team/minestrone/tokenizer.json", b"x".to_vec()).await;

    let opened = server.open("s3://adapters/team/mine").await.unwrap();
    assert_eq!(opened.config, "{}");
    assert_eq!(opened.weights_bytes, Some(2_500_000));
    assert_eq!(opened.origin, format!("s3://adapters/team/mine#{config},{tensors}"));
    assert_eq!(opened.other_files, ["chat_template.jinja"]);
    assert_eq!(weights(opened).await.unwrap(), bytes(2_500_000));
}

#[tokio::test]
async fn what_is_no_package_or_not_allowed_is_told_apart() {
    let mut server = Server::start().await;
    let error = server.open("s3://adapters/nothing").await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: "adapter_config.json", .. }), "{error:?}");

    server.put("x/adapter_config.json", b"{}".to_vec()).await;
    let error = server.open("s3://adapters/x").await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: "adapter_model.safetensors", .. }), "{error:?}");
    server.put("x/adapter_model.bin", b"{}".to_vec()).await;
    let error = server.open("s3://adapters/x").await.unwrap_err();
    assert!(matches!(error, Error::PickleOnly { .. }), "{error:?}");

    server.put("x/adapter_model.safetensors", bytes(1001)).await;
    server.access.weights_bytes_max = 1000;
    let error = server.open("s3://adapters/x").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: "adapter_model.safetensors", bytes_max: 1000, .. }), "{error:?}");
    server.put("x/adapter_config.json", bytes((1 << 20) + 1)).await;
    let error = server.open("s3://adapters/x").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: "adapter_config.json", .. }), "{error:?}");
    server.put("x/adapter_config.json", Vec::new()).await;
    assert!(server.open("s3://adapters/x").await.unwrap_err().to_string().contains("an empty adapter_config.json"));

    let error = server.open("s3://weft/x").await.unwrap_err();
    assert!(matches!(error, Error::NotAllowed { setting: "s3_buckets", .. }), "{error:?}");
    server.access.s3.secret_access_key = Some("wrong".to_owned());
    assert_eq!(server.open("s3://adapters/x").await.unwrap_err().kind(), Kind::Internal);
}

/// Stands before the server and writes the whole package anew just before the weights are asked for. Returns where it listens.
async fn meddler(server: SocketAddr, store: Arc<S3Store>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, TcpStream::connect(server).await.unwrap(), store.clone()));
        }
    });
    address
}

async fn carry(client: TcpStream, server: TcpStream, store: Arc<S3Store>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from_client.read(&mut piece).await {
        if String::from_utf8_lossy(&piece[..length]).contains("GET /adapters/x/adapter_model.safetensors") {
            store.put("x/adapter_config.json", b"{\"r\":2}".to_vec().into()).await.unwrap();
            store.put("x/adapter_model.safetensors", bytes(2000).into()).await.unwrap();
        }
        if to_server.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn config_and_weights_are_of_one_package() {
    let mut server = Server::start().await;
    server.put("x/adapter_config.json", b"{\"r\":1}".to_vec()).await;
    server.put("x/adapter_model.safetensors", bytes(1000)).await;
    let straight = server.access.s3.endpoint.clone().unwrap();
    let address = straight.strip_prefix("http://").unwrap().parse().unwrap();
    let meddler = meddler(address, server.store.clone()).await;
    server.access.s3.endpoint = Some(format!("http://{meddler}"));
    let error = server.open("s3://adapters/x").await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error:?}");

    server.access.s3.endpoint = Some(straight);
    let opened = server.open("s3://adapters/x").await.unwrap();
    assert_eq!(opened.config, "{\"r\":2}");
    assert_eq!(weights(opened).await.unwrap(), bytes(2000));
}

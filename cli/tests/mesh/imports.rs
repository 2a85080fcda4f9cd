//! Packages from elsewhere: a folder or an archive on the registry's machine, and archives that are uploaded.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn run(mesh: &Weft, args: &[&str]) -> Result<Value, String> {
    let mut all = args.to_vec();
    all.extend(["--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY, "--tenant", "harbour"]);
    let (status, out, err) = weft(&all);
    if status.success() { Ok(serde_json::from_str(&out).unwrap_or_default()) } else { Err(err) }
}

fn tar(folder: &Path, archive: &Path, flags: &str, names: &[&str]) {
    let status = Command::new("tar").arg(flags).arg(archive).arg("-C").arg(folder).args(names).status().unwrap();
    assert!(status.success());
}

const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

#[tokio::test(flavor = "multi_thread")]
async fn packages_come_from_allowed_folders_and_from_archives_and_are_the_same_versions() {
    let roots = tempfile::tempdir().unwrap();
    let (allowed, other) = (roots.path().join("allowed"), roots.path().join("other"));
    for folder in [&allowed, &other] {
        let package = folder.join("rank8");
        std::fs::create_dir_all(&package).unwrap();
        for file in FILES {
            std::fs::copy(tiny_adapter("rank8").join(file), package.join(file)).unwrap();
        }
    }
    let mesh = Weft::up(&tiny_model(), &["--registry-source-file-roots", allowed.to_str().unwrap()]);
    let secret = mesh.tenant("harbour").await;
    let url = |folder: &Path, name: &str| format!("file://{}", folder.join(name).display());

    let made = run(&mesh, &["import", &url(&allowed, "rank8"), "--name", "imported"]).unwrap();
    assert_eq!((&made["version"], &made["adapter"]), (&1.into(), &"imported".into()));
    assert!(made["origin"].as_str().unwrap().starts_with("file://"), "{made}");
    let listed = mesh.admin().versions("harbour", "imported").await.unwrap();
    assert_eq!(listed["versions"][0]["origin"], made["origin"]);

    // The same package as an archive, in either order of its files, is the same version.
    let (plain, gzipped) = (roots.path().join("package.tar"), allowed.join("package.tar.gz"));
    tar(&allowed.join("rank8"), &plain, "-cf", &[FILES[1], FILES[0]]);
    tar(&allowed, &gzipped, "-czf", &["rank8"]);
    for again in [
        run(&mesh, &["publish", plain.to_str().unwrap(), "--name", "imported"]).unwrap(),
        run(&mesh, &["publish", gzipped.to_str().unwrap(), "--name", "imported"]).unwrap(),
        run(&mesh, &["import", &url(&allowed, "package.tar.gz"), "--name", "imported"]).unwrap(),
    ] {
        assert_eq!((&again["version"], &again["digest"]), (&made["version"], &made["digest"]), "{again}");
    }
    let answer = mesh.data(&secret).complete_tokens("imported", &[72, 105, 33], 4).await.unwrap();
    assert_eq!(answer.digest, made["digest"]);

    // What is not allowed, not there, or not a package.
    std::os::unix::fs::symlink(&other, allowed.join("way-out")).unwrap();
    let template = allowed.join("templated");
    std::fs::create_dir_all(&template).unwrap();
    for file in FILES {
        std::fs::copy(tiny_adapter("rank8").join(file), template.join(file)).unwrap();
    }
    std::fs::write(template.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let (evil, links) = (roots.path().join("evil.tar"), roots.path().join("links.tar"));
    tar(&allowed, &links, "-cf", &["way-out"]);
    tar(&template, &evil, "-cf", &["chat_template.jinja"]);
    for (args, part) in [
        (vec!["import".to_owned(), url(&other, "rank8")], "file_roots"),
        (vec!["import".to_owned(), url(&allowed, "way-out/rank8")], "link"),
        (vec!["import".to_owned(), url(&allowed, "none")], "none"),
        (vec!["import".to_owned(), url(&allowed, "templated")], "chat_template.jinja"),
        (vec!["import".to_owned(), "hf://org/name".to_owned()], "hub_owners"),
        (vec!["import".to_owned(), "s3://bucket/prefix".to_owned()], "s3_buckets"),
        (vec!["import".to_owned(), "http://169.254.169.254/".to_owned()], "http"),
        (vec!["publish".to_owned(), links.display().to_string()], "link"),
        (vec!["publish".to_owned(), evil.display().to_string()], "adapter_config.json"),
    ] {
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["--name", "refused"]);
        let refused = run(&mesh, &args).unwrap_err();
        assert!(refused.contains(part), "{args:?}: {refused}");
    }
    let adapters = mesh.admin().adapters("harbour").await.unwrap();
    assert_eq!(adapters["adapters"].as_array().unwrap().len(), 1, "what is refused leaves nothing: {adapters}");
}

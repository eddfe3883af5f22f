//! Lists the playground's files, which `make console` puts into `console/dist`, for `src/http/console.rs` to embed. They are
//! compressed already, so nothing slow happens here. Without them the list is empty, and the server says what is missing.
//! What is embedded is a copy: where clones share a build folder, the clone that this ran in may be gone when it is compiled.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
};

const DIST: &str = "console/dist";

fn main() -> Result<(), Box<dyn Error>> {
    // The folder itself is in git (with a file that keeps it): a path that does not exist would count as changed every time.
    println!("cargo::rerun-if-changed={DIST}");

    let dist = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(DIST);
    let mut files = Vec::new();
    if dist.is_dir() {
        collect_compressed_files(&dist, &mut files)?;
    }
    files.sort();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut list = String::from("&[\n");
    for (number, file) in files.iter().enumerate() {
        let (path, content_type) = describe(&dist, file)?;
        let content = fs::read(file)?;
        let etag = format!("W/\"{:016x}\"", hash(&content));
        let copy = out.join(format!("asset_{number}.gz"));
        fs::write(&copy, content)?;
        writeln!(
            list,
            "    Asset {{ path: {path:?}, content_type: {content_type:?}, etag: {etag:?}, gzip: include_bytes!({copy:?}) }},"
        )?;
    }
    list.push_str("]\n");
    fs::write(out.join("console_assets.rs"), list)?;
    Ok(())
}

fn collect_compressed_files(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_compressed_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "gz") {
            files.push(path);
        }
    }
    Ok(())
}

/// The path that a file is served at, and its content type.
fn describe(dist: &Path, file: &Path) -> Result<(String, &'static str), Box<dyn Error>> {
    let name = file.strip_prefix(dist)?.with_extension("");
    let name = name
        .to_str()
        .ok_or("the names in console/dist must be UTF-8")?
        .replace('\\', "/");
    let content_type = match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "css" => "text/css; charset=utf-8",
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "ttf" => "font/ttf",
        "txt" => "text/plain; charset=utf-8",
        "woff2" => "font/woff2",
        _ => return Err(format!("{DIST}/{name}: build.rs knows no content type for it").into()),
    };
    let path = if name == "index.html" {
        "/".to_owned()
    } else {
        format!("/{name}")
    };
    Ok((path, content_type))
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

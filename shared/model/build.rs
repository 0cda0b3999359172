//! Puts libtorch's folder on the run path, so that the program starts without LD_LIBRARY_PATH, and compiles what tch does
//! not expose of libtorch.

use std::path::Path;

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys must be a direct dependency");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rerun-if-changed=native/shim.cpp");
    let include = Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // libtorch's own headers do not compile without warnings.
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file("native/shim.cpp")
        .compile("grail_model_shim");
    println!("cargo:rustc-link-lib=dylib=c10");
}

//! Puts libtorch's folder on the run path, so that the program starts without LD_LIBRARY_PATH.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys must be a direct dependency");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}

//! Sets a response header: a native plugin in Rust, without crates. Build it with:
//!     kongps build hello_rust.rs -o PLUGINS_DIRECTORY
//!
//! The types repeat the part of `kongps/plugin.h` that is needed here.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr::null;

#[repr(C)]
#[derive(Clone, Copy)]
struct Value {
    kind: i32,
    reserved: i32,
    size: u64,
    text: *const c_char, // the member of the union that is used here
}

const NIL: Value = Value { kind: 0, reserved: 0, size: 0, text: null() };
const STRING: i32 = 4;
const OK: c_int = 0;
const FAILED: c_int = -3;

#[repr(C)]
struct Api {
    api: u32,
    size: u32,
    call: unsafe extern "C" fn(*mut Kong, *const c_char, *const Value, usize, *mut Value) -> c_int,
}

#[repr(C)]
pub struct Kong {
    api: *const Api,
}

type Handler = unsafe extern "C" fn(*mut c_void, *mut Kong) -> c_int;

#[repr(C)]
pub struct PluginTable {
    api: u32,
    size: u32,
    version: *const c_char,
    priority: i32,
    phases: u32,
    schema: *const c_char,
    new_instance:
        Option<unsafe extern "C" fn(*const c_char, usize, *mut *mut c_void, *mut c_char) -> c_int>,
    close_instance: Option<unsafe extern "C" fn(*mut c_void)>,
    handlers: [Option<Handler>; 6],
}

unsafe impl Sync for PluginTable {} // it never changes

impl Kong {
    /// Asks Kong to call a PDK function that takes strings. An error is the code to return.
    unsafe fn call(&mut self, function: &CStr, arguments: &[&CStr]) -> Result<Value, c_int> {
        let values: Vec<Value> = arguments
            .iter()
            .map(|text| Value {
                kind: STRING,
                reserved: 0,
                size: text.to_bytes().len() as u64,
                text: text.as_ptr(),
            })
            .collect();
        let mut result = NIL;
        let call = (*self.api).call;
        match call(self, function.as_ptr(), values.as_ptr(), values.len(), &mut result) {
            OK => Ok(result),
            code => Err(code),
        }
    }
}

struct Hello {
    message: String,
}

/// The value of "message" in the configuration; a real plugin would use a JSON crate.
fn message_of(config: &str) -> Option<String> {
    let rest = &config[config.find("\"message\":")? + "\"message\":".len()..];
    let rest = rest.trim_start().strip_prefix('"')?;
    Some(rest[..rest.find('"')?].to_string())
}

unsafe extern "C" fn new_hello(
    config: *const c_char,
    _size: usize,
    instance: *mut *mut c_void,
    _error: *mut c_char,
) -> c_int {
    let config = CStr::from_ptr(config).to_string_lossy();
    let message = message_of(&config).unwrap_or_else(|| "hello".to_string());
    *instance = Box::into_raw(Box::new(Hello { message })) as *mut c_void;
    OK
}

unsafe extern "C" fn close_hello(instance: *mut c_void) {
    drop(Box::from_raw(instance as *mut Hello));
}

impl Hello {
    unsafe fn access(&self, kong: &mut Kong) -> Result<(), c_int> {
        let host = kong.call(c"kong.request.get_header", &[c"host"])?;
        let name = if host.kind == STRING {
            CStr::from_ptr(host.text).to_string_lossy().into_owned()
        } else {
            "nobody".to_string()
        };
        let greeting = CString::new(format!("Rust says {} to {}", self.message, name))
            .map_err(|_| FAILED)?;
        let pid = CString::new(std::process::id().to_string()).map_err(|_| FAILED)?;
        kong.call(c"kong.response.set_header", &[c"x-hello-from-rust", &greeting])?;
        kong.call(c"kong.response.set_header", &[c"x-rust-pid", &pid])?;
        Ok(())
    }
}

unsafe extern "C" fn on_access(instance: *mut c_void, kong: *mut Kong) -> c_int {
    match (*(instance as *const Hello)).access(&mut *kong) {
        Ok(()) => OK,
        Err(code) => code,
    }
}

#[no_mangle]
#[allow(non_upper_case_globals)]
pub static kongps_plugin: PluginTable = PluginTable {
    api: 1,
    size: std::mem::size_of::<PluginTable>() as u32,
    version: c"1.0.0".as_ptr(),
    priority: 10,
    phases: 1 << 2, // access
    schema: c"[{\"message\": {\"type\": \"string\", \"default\": \"hello\"}}]".as_ptr(),
    new_instance: Some(new_hello),
    close_instance: Some(close_hello),
    handlers: [None, None, Some(on_access), None, None, None],
};

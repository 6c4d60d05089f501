//! The wing's list: one line a codec or system.

mod bitstack;
mod decoupleq;
mod elutq;
mod evopress;
mod exact;
mod gptq;
mod hawq;
pub(crate) mod house;
mod k_sort;
mod lgreco;
pub(crate) mod mixllm;
mod olive;
mod progressive;
mod rtn;
mod spqr;
mod vptq;

pub(crate) use bitstack::system as bitstack;
pub(crate) use elutq::system as elutq;
pub use exact::Exact;
pub(crate) use k_sort::system as k_sort;
use lamella_codec::{Registration, System};
pub(crate) use olive::system as olive;
pub(crate) use spqr::system as spqr;
pub(crate) use vptq::system as vptq;

/// Every codec of this wing that recipes can name.
pub fn codecs() -> Vec<Registration> {
    vec![
        exact::registration(),
        rtn::registration(),
        gptq::registration(),
        house::registration(),
        spqr::registration(),
        progressive::registration(),
        bitstack::registration(),
        elutq::registration(),
        decoupleq::registration(),
        vptq::registration(),
        olive::registration(),
        k_sort::registration(),
        mixllm::registration(),
    ]
}

/// Every built system of this wing.
pub fn systems() -> Vec<System> {
    vec![
        hawq::system(),
        evopress::system(),
        spqr::system(),
        elutq::system(),
        decoupleq::system(),
        bitstack::system(),
        lgreco::system(),
        vptq::system(),
        olive::system(),
        k_sort::system(),
        mixllm::system(),
    ]
}

//! Page readers with a budget: what a page's header promises is checked against limits before it is decoded.

use std::sync::{Arc, Mutex};

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// What one file may still cost.
pub(super) struct Budget {
    /// Decompressed bytes over all columns.
    pub(super) bytes: u64,
    /// Values of one column (list elements count one each).
    pub(super) values: u64,
}

/// Passes pages on until the budget is spent. Run lengths make a page of a few bytes stand for billions of values, so both
/// sizes and counts are limited.
pub(super) struct BoundedPages {
    pub(super) pages: Box<dyn PageReader>,
    pub(super) budget: Arc<Mutex<Budget>>,
    pub(super) values: u64,
}

impl BoundedPages {
    fn charge(&mut self, page: &Page) -> Result<()> {
        let mut budget = self.budget.lock().map_err(|_| ParquetError::General("a page reader panicked before".into()))?;
        let bytes = page.buffer().len() as u64;
        if bytes > budget.bytes {
            return Err(ParquetError::General("the file decompresses to more than is allowed for a window".into()));
        }
        budget.bytes -= bytes;
        if !matches!(page, Page::DictionaryPage { .. }) {
            self.values += u64::from(page.num_values());
        }
        if self.values > budget.values {
            return Err(ParquetError::General("a column holds more values than is allowed for a window".into()));
        }
        Ok(())
    }
}

impl Iterator for BoundedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for BoundedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.charge(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

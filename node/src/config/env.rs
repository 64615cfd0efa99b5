//! Environment variables, under our name first, then Vault's, then OpenBao's.

/// Looks up one variable.
type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The environment; a function, so that tests need not change the process's own.
pub(crate) struct Environment(Box<Lookup>);

impl Environment {
    /// The process's own. What is not Unicode counts as unset.
    pub(crate) fn process() -> Self {
        Self(Box::new(|name| std::env::var(name).ok()))
    }

    /// Fixed variables.
    #[cfg(test)]
    pub(crate) fn fixed(variables: &[(&str, &str)]) -> Self {
        let variables: std::collections::HashMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self(Box::new(move |name| variables.get(name).cloned()))
    }

    /// A variable by its whole name; the empty one counts as unset.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// `STRONGROOM_<suffix>`, `VAULT_<suffix>` or `BAO_<suffix>`, in this order, with the name it was found under.
    pub(crate) fn find(&self, suffix: &str) -> Option<(String, String)> {
        ["STRONGROOM", "VAULT", "BAO"].iter().find_map(|prefix| {
            let name = format!("{prefix}_{suffix}");
            self.get(&name).map(|value| (name, value))
        })
    }
}

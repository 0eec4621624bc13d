//! Who may sign what: teams, and the keys of every role.

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;

use crate::error::RegistryError;
use crate::keys::KeyInfo;
use crate::metadata::{Delegations, Head, RoleKeys, Root, Targets};
use crate::registry::{
    OFFLINE_DAYS, Registry, TOP_LEVEL, after, check_name, check_threshold, days, timestamp,
};
use crate::request::{Delegate, Rotate};
use crate::staging::{Written, named_keys};

impl Registry {
    /// Lets a team sign models below `models/<team>/`, with a key of its own made here. A team that is there is
    /// left alone.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn add_team(&mut self, team: &str, now: SystemTime) -> Result<(), RegistryError> {
        match self.delegate(&Delegate::new(team), now) {
            Err(RegistryError::TeamExists(_)) => Ok(()),
            other => other,
        }
    }

    /// Lets a team sign models below `models/<team>/`, with the keys it brings, or with one made here.
    ///
    /// # Errors
    /// See [`RegistryError`]. Without the `targets` key the change is staged, and so is the team's first file
    /// without the team's.
    pub fn delegate(&mut self, what: &Delegate, now: SystemTime) -> Result<(), RegistryError> {
        check_name("team", &what.team)?;
        let role = format!("team-{}", what.team);
        let now = timestamp(now);
        let (version, targets) = self.newest::<Targets>("targets")?;
        let mut delegations = targets.delegations.unwrap_or_default();
        if delegations.roles.iter().any(|delegated| delegated.name == role) {
            return Err(RegistryError::TeamExists(what.team.clone()));
        }
        for key in &what.keys {
            self.keys.import(&KeyInfo { role: role.clone(), ..key.clone() })?;
        }
        // There already when an earlier call was cut short.
        if self.keys.public(&role).is_empty() {
            self.keys.generate(&role, &role)?;
        }
        check_threshold(&role, self.keys.public(&role).len(), what.threshold)?;
        let added = self.delegation(&role, format!("models/{}/*/*", what.team), what.threshold);
        delegations.keys.extend(added.keys);
        delegations.roles.extend(added.roles);
        self.write_targets("targets", version + 1, targets.targets, Some(delegations), now)?;
        if self.next_version(&role)? == 1 && !self.staged_path(&role, 1).exists() {
            self.write_targets(&role, 1, BTreeMap::new(), None, now)?;
        }
        self.release(now)
    }

    /// Gives a role other keys: the named ones go, new ones come. The role's file is signed anew with them.
    ///
    /// For the root, and for what the root names, that is a new root, signed by old and new root keys; for
    /// `rollout` and the teams it is a new `targets`.
    ///
    /// # Errors
    /// See [`RegistryError`]; what keys elsewhere should sign is staged.
    pub fn rotate(&mut self, what: &Rotate, now: SystemTime) -> Result<Vec<KeyInfo>, RegistryError> {
        let before = self.role_keys(&what.role)?;
        let mut keyids = before.keyids.clone();
        let gone = match &what.remove {
            Some(names) => names.clone(),
            None => self.names(&keyids),
        };
        for name in &gone {
            let id = self.keys.named(name)?.id.clone();
            if !keyids.contains(&id) {
                return Err(RegistryError::NotAKey { key: name.clone(), role: what.role.clone() });
            }
            keyids.retain(|kept| *kept != id);
        }
        let threshold = what.threshold.unwrap_or(before.threshold);
        let coming = if what.add.is_empty() { gone.len() } else { what.add.len() };
        check_threshold(&what.role, keyids.len() + coming, threshold)?;
        let added = self.new_keys(what, gone.len())?;
        keyids.extend(added.iter().map(|key| key.id.clone()));
        keyids.sort();
        self.set_keys(&what.role, RoleKeys { keyids, threshold }, timestamp(now))?;
        Ok(added)
    }

    /// Takes a key away from its role, without another in its place.
    ///
    /// # Errors
    /// [`RegistryError::Threshold`] when too few would be left: rotate it then.
    pub fn revoke(&mut self, key: &str, now: SystemTime) -> Result<(), RegistryError> {
        let key = self.keys.named(key)?.clone();
        let mut keys = self.role_keys(&key.role)?;
        if !keys.keyids.contains(&key.id) {
            return Err(RegistryError::NotAKey { key: key.name, role: key.role });
        }
        keys.keyids.retain(|id| *id != key.id);
        check_threshold(&key.role, keys.keyids.len(), keys.threshold)?;
        self.set_keys(&key.role, keys, timestamp(now))
    }

    /// The keys and threshold a role has now.
    ///
    /// # Errors
    /// [`RegistryError::NoRole`].
    pub fn role_keys(&self, role: &str) -> Result<RoleKeys, RegistryError> {
        let found = if TOP_LEVEL.contains(&role) {
            self.newest::<Root>("root")?.1.roles.remove(role)
        } else {
            let delegations = self.newest::<Targets>("targets")?.1.delegations.unwrap_or_default();
            delegations.roles.iter().find(|delegated| delegated.name == role).map(|role| role.role_keys())
        };
        found.ok_or_else(|| RegistryError::NoRole(role.to_owned()))
    }

    fn names(&self, ids: &[String]) -> Vec<String> {
        let keys = self.keys.list().iter().filter(|key| ids.contains(&key.id));
        keys.map(|key| key.name.clone()).collect()
    }

    /// The keys brought along, or as many new ones as went.
    fn new_keys(&mut self, what: &Rotate, gone: usize) -> Result<Vec<KeyInfo>, RegistryError> {
        let mut added = Vec::new();
        for key in &what.add {
            let key = KeyInfo { role: what.role.clone(), ..key.clone() };
            self.keys.import(&key)?;
            added.push(key);
        }
        if what.add.is_empty() {
            for _ in 0..gone {
                let free = (1..).map(|n| format!("{}-{n}", what.role));
                let name = free.into_iter().find(|name| self.keys.named(name).is_err());
                let name = name.expect("numbers do not end before names do");
                added.push(self.keys.generate(&name, &what.role)?);
            }
        }
        Ok(added)
    }

    fn set_keys(&mut self, role: &str, keys: RoleKeys, now: Timestamp) -> Result<(), RegistryError> {
        let written = if TOP_LEVEL.contains(&role) {
            let (version, mut root) = self.newest::<Root>("root")?;
            root.head = Head::new("root", version + 1, after(now, OFFLINE_DAYS));
            root.keys.extend(self.keys.public(role));
            root.roles.insert(role.to_owned(), keys);
            root.keys = named_keys(&root.keys, root.roles.values().map(|role| &role.keyids[..]));
            self.write_role("root", version + 1, &root)?
        } else {
            let (version, targets) = self.newest::<Targets>("targets")?;
            let mut delegations = targets.delegations.unwrap_or_default();
            delegations.keys.extend(self.keys.public(role));
            set_delegated(&mut delegations, role, keys);
            self.write_targets("targets", version + 1, targets.targets, Some(delegations), now)?
        };
        // Until the new keys are in force nothing signed by them would be believed; `refresh` goes on from there.
        if written == Written::Staged {
            return Ok(());
        }
        if !matches!(role, "root" | "snapshot" | "timestamp") && !self.in_force(role)? {
            let (version, targets) = self.newest::<Targets>(role)?;
            let body = targets.renewed(version + 1, after(now, days(role)));
            self.write_role(role, version + 1, &body)?;
        }
        self.release(now)
    }
}

fn set_delegated(delegations: &mut Delegations, role: &str, keys: RoleKeys) {
    for delegated in delegations.roles.iter_mut().filter(|delegated| delegated.name == role) {
        delegated.keyids.clone_from(&keys.keyids);
        delegated.threshold = keys.threshold;
    }
    delegations.keys = named_keys(&delegations.keys, delegations.roles.iter().map(|role| &role.keyids[..]));
}

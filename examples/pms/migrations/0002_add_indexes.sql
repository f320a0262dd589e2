CREATE INDEX reservations_nights ON reservations (room_id, state, arrives, departs);
